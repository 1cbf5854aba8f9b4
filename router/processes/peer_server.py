"""PeerServer: what one router process serves to the others of its router."""

from __future__ import annotations

from pathlib import Path

from router.processes.shared_metrics import MetricsService, Page
from router.processes.sockets import address
from triptych.rpc.server import RpcServer
from triptych.v1 import router_pb2, router_pb2_grpc


class PeerServer(RpcServer):
    """Listens on the Unix socket of process `number`; gives the metrics of that process. `add` more before `start`."""

    def __init__(self, folder: Path, number: int, max_message_bytes: int, page: Page) -> None:
        super().__init__(address(folder, number), 0, max_message_bytes)
        self.add(
            router_pb2_grpc.add_MetricsServiceServicer_to_server,
            MetricsService(page),
            router_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name,
        )
