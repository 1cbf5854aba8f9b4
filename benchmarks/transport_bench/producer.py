"""A producer of tensors in a process of its own, for whoever times or tests a lane between two processes."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.transport_bench.event_loop import run_on_actor_loop
from triptych.config import TransportSection
from triptych.rpc.server import RpcServer
from triptych.transport.device_id import device_id
from triptych.transport.host import host_id, new_incarnation_id
from triptych.transport.lease import LeaseTable
from triptych.transport.service import SERVICE_NAME, TensorService
from triptych.transport.ticket import Ticket, new_id
from triptych.transport.wire import add_tensor_service

MESSAGE_BYTES = 32 << 20
FINGERPRINT = "benchmark"


class ProducerProcess:
    """Serves one tensor [rows, 1024] of random bits, bfloat16, on `device`; a context manager."""

    def __init__(self, transport: TransportSection, device: str, num_bytes: int) -> None:
        # Not forked: this process may have a GPU open.
        context = multiprocessing.get_context("forkserver")
        # The first one waits for these imports, the others don't.
        context.set_forkserver_preload(["torch", "grpc", "triptych.transport.service", "triptych.transport.fetcher"])
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, transport, device, num_bytes), daemon=True)
        self.process.start()
        theirs.close()
        self.producer_id, self._port, self._device_id, self._lanes = self._connection.recv()
        self._shape = (num_bytes // 2048, 1024)

    def ticket(self) -> Ticket:
        """Of the tensor, granted already."""
        ticket_id = new_id()
        self.ask(("grant", ticket_id))
        return Ticket(
            ticket_id=ticket_id,
            producer_id=self.producer_id,
            producer_endpoint=f"127.0.0.1:{self._port}",
            producer_host_id=host_id(),
            model_fingerprint=FINGERPRINT,
            dtype=torch.bfloat16,
            shape=self._shape,
            lanes=self._lanes,
            device_id=self._device_id,
        )

    def tensor(self) -> torch.Tensor:
        """The same bits, made here."""
        return make_tensor("cpu", self._shape[0] * 2048)

    def held(self) -> dict[str, int]:
        """What the producer holds for consumers."""
        held: dict[str, int] = self.ask(("held", ""))
        return held

    def used_gpu_bytes(self) -> int:
        used: int = self.ask(("memory", ""))
        return used

    def ask(self, wish: tuple[str, str]) -> Any:
        self._connection.send(wish)
        return self._connection.recv()

    def __enter__(self) -> ProducerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join()


def make_tensor(device: str, num_bytes: int) -> torch.Tensor:
    """[num_bytes / 2048, 1024] bfloat16, the same everywhere."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_bytes // 2048, 1024, generator=generator, dtype=torch.float32).bfloat16().to(device)


def used_gpu_bytes(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _run(connection: Connection, transport: TransportSection, device: str, num_bytes: int) -> None:
    run_on_actor_loop(_serve(connection, transport, torch.device(device), num_bytes))


async def _serve(connection: Connection, transport: TransportSection, device: torch.device, num_bytes: int) -> None:
    torch.set_num_threads(1)
    tensor = make_tensor(str(device), num_bytes)
    leases = LeaseTable(transport.lease_s, transport.unknown_ticket_wait_s)
    producer_id = new_incarnation_id("encoder")
    service = TensorService(leases, producer_id, FINGERPRINT, transport, device)
    server = RpcServer("127.0.0.1", 0, MESSAGE_BYTES)
    server.add(add_tensor_service, service, SERVICE_NAME)
    connection.send((producer_id, await server.start(), device_id(device), service.lanes))
    while True:
        what, ticket_id = await asyncio.to_thread(connection.recv)
        if what == "grant":
            leases.grant(ticket_id, tensor)
            connection.send(None)
        elif what == "held":
            counts = leases.counters()
            connection.send({"leases": counts.held_leases, "pinned": counts.pinned_leases})
        elif what == "memory":
            connection.send(used_gpu_bytes(device))
