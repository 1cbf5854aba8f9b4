"""FirstProcess: what the first of several router processes has beside those that a single one has."""

from __future__ import annotations

import shutil

from router.api.client_ports import ClientPorts, SharedPorts
from router.control.membership import Membership
from router.processes.membership_service import MembershipService
from router.processes.peer_server import PeerServer
from router.processes.router_processes import RouterProcesses
from router.processes.shared_metrics import SharedMetrics
from router.processes.sockets import FIRST, make_folder
from triptych.config import DeploymentConfig
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2, admin_pb2_grpc, router_pb2, router_pb2_grpc

# Beyond what running requests may take, for processes to end.
_EXIT_S = 5.0


class FirstProcess:
    """`start` begins the other processes, `stop` ends them. `config` is the share of each process."""

    def __init__(self, config: DeploymentConfig, membership: Membership) -> None:
        self._config = config
        self._folder = make_folder()
        self._peers = ChannelPool(config.limits.max_message_bytes)
        self._members = MembershipService(membership)
        self._server: PeerServer | None = None
        self._processes: RouterProcesses | None = None
        self.shared = SharedPorts(
            admin=None, metrics_page=SharedMetrics(self._folder, config.router.processes, self._peers).page
        )

    @property
    def process_ids(self) -> list[int]:
        """Of the other processes."""
        return self._processes.process_ids if self._processes is not None else []

    async def start(self, ports: ClientPorts) -> None:
        """Returns when every process listens on the ports that this one got. Raises Unavailable when one does not."""
        self._server = PeerServer(self._folder, FIRST, self._config.limits.max_message_bytes, ports.metrics_page)
        self._server.add(
            router_pb2_grpc.add_MembershipServiceServicer_to_server,
            self._members,
            router_pb2.DESCRIPTOR.services_by_name["MembershipService"].full_name,
        )
        self._server.add(
            admin_pb2_grpc.add_AdminServiceServicer_to_server,
            ports.admin,
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
        )
        await self._server.start()
        router = self._config.router.model_copy(update={"port": ports.port, "http_port": ports.http_port})
        self._processes = RouterProcesses(self._config.model_copy(update={"router": router}), self._folder)
        await self._processes.start()

    def set_serving(self, is_serving: bool) -> None:
        """What the other processes tell health checks."""
        self._members.set_serving(is_serving)

    async def stop(self) -> None:
        """The other processes take no new requests and let running ones finish within control.drain_timeout_s."""
        if self._processes is not None:
            await self._processes.stop(self._config.control.drain_timeout_s + _EXIT_S)
        if self._server is not None:
            await self._server.stop(0)
        await self._peers.close()
        shutil.rmtree(self._folder, ignore_errors=True)
