"""A producer and a consumer in processes of their own that kill or stop themselves at one exact point of a transfer.

They run on the CPU, or on a GPU that they share.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from triptych.config import TransportSection
from triptych.errors import TriptychError
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.transport.cuda_ipc.lane import CudaIpcConsumerLane, CudaIpcProducerLane
from triptych.transport.device_id import device_id
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import host_id, new_incarnation_id
from triptych.transport.lease import LeaseTable
from triptych.transport.links.gloo import GlooBackend
from triptych.transport.links.lane import LinkConsumerLane, LinkProducerLane
from triptych.transport.service import SERVICE_NAME, TensorService
from triptych.transport.shm import ShmProducerLane
from triptych.transport.ticket import Ticket
from triptych.transport.wire import add_tensor_service

MESSAGE_BYTES = 8 << 20
FINGERPRINT = "weights-1"
# Larger than what the sockets between two processes hold.
TENSOR = torch.arange(3 << 20, dtype=torch.float32).reshape(1024, -1)
# Before the id of a ticket: it is granted the negative of TENSOR.
NEGATIVE = "negative "
# How the process of `fetch` exits.
ARRIVED, REFUSED, WRONG = 10, 11, 12
_LANES_OF_ONE_PIECE = (ShmProducerLane, CudaIpcProducerLane)


def context() -> Any:
    """Processes start from one that has imported everything, but runs no thread."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["torch", "grpc", "triptych.transport.service", "triptych.transport.fetcher"])
    return made


@dataclass(frozen=True)
class Fault:
    """`moment`: "before" the tensor is on offer, "during" its transfer, or "after" it, once."""

    moment: str = ""
    signal: int = 0


class _Strike:
    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._is_armed = True

    def at(self, moment: str) -> None:
        if self._is_armed and self._fault.moment == moment:
            self._is_armed = False
            os.kill(os.getpid(), self._fault.signal)


class _StrikingGloo(GlooBackend):
    def __init__(self, own_host: str, strike: Callable[[], None]) -> None:
        super().__init__(own_host)
        self._strike = strike

    def send(self, tensor: Tensor) -> Any:
        work = super().send(tensor)
        self._strike()
        return work

    def recv(self, tensor: Tensor) -> Any:
        work = super().recv(tensor)
        self._strike()
        return work


def _striking(lane: Any, strike: _Strike) -> None:
    """Makes the producer's end of a lane strike before it begins, and in the middle of the bytes."""
    send = lane.send
    if isinstance(lane, LinkProducerLane):
        backend = _make_striking_gloo(lambda: strike.at("during"))
        lane.links._settings = replace(lane.links._settings, make_backend=backend)

    async def send_and_strike(rows: Tensor, header: Any, write: Any, deadline: Any) -> None:
        num_writes = 0

        async def write_and_strike(response: Any) -> None:
            nonlocal num_writes
            num_writes += 1
            # grpc: after the header and a chunk; shm, cuda_ipc: the rows are in the slab, and nobody knows yet.
            if isinstance(lane, _LANES_OF_ONE_PIECE) or num_writes == 3:
                strike.at("during")
            await write(response)

        strike.at("before")
        await send(rows, header, write_and_strike, deadline)

    lane.send = send_and_strike


def _make_striking_gloo(strike: Callable[[], None]) -> Callable[[str], _StrikingGloo]:
    return lambda own_host: _StrikingGloo(own_host, strike)


def serve(connection: Connection, transport: TransportSection, fault: Fault, device: str = "cpu") -> None:
    """A producer. Says (producer id, port, device id). Wishes: a ticket id is granted TENSOR; "counts" asks what is
    held; "spoil" changes a byte of every tensor from now on, after its checksum was made; "off LANE" serves it no more;
    None ends it.
    """
    asyncio.run(_serve(connection, transport, fault, torch.device(device)))


async def _serve(connection: Connection, transport: TransportSection, fault: Fault, device: torch.device) -> None:
    strike = _Strike(fault)
    tensors = {False: TENSOR.to(device), True: -TENSOR.to(device)}
    leases = LeaseTable(transport.lease_s, transport.unknown_ticket_wait_s)
    sweeper = asyncio.create_task(leases.run())
    producer_id = new_incarnation_id("encoder")
    service = TensorService(leases, producer_id, FINGERPRINT, transport, device)
    for lane in service._lanes.values():
        _striking(lane, strike)
    server = RpcServer("127.0.0.1", 0, MESSAGE_BYTES)
    server.add(add_tensor_service, service, SERVICE_NAME)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    connection.send((producer_id, await server.start(), device_id(device)))
    while (wish := await asyncio.to_thread(connection.recv)) is not None:
        if wish == "counts":
            connection.send(_held(leases, service))
            continue
        if wish == "spoil":
            _spoil(service._lanes["cuda_ipc"])
        elif wish.startswith("off "):
            del service._lanes[wish.removeprefix("off ")]
        else:
            tensor = tensors[wish.startswith(NEGATIVE)]
            leases.grant(wish.removeprefix(NEGATIVE), tensor, on_release=lambda: strike.at("after"))
        connection.send("done")
    sweeper.cancel()


def _spoil(lane: Any) -> None:
    slab = lane._slab
    write = slab.write

    def write_and_spoil(piece: Any, data: Tensor) -> None:
        write(piece, data)
        address = slab._address + piece.offset + 70_001
        (byte,) = slab._driver.read(address, 1)
        slab._driver.write(address, bytes([byte ^ 1]))

    slab.write = write_and_spoil


def _held(leases: LeaseTable, service: TensorService) -> dict[str, int]:
    counts = leases.counters()
    held = {"leases": counts.held_leases, "pinned": counts.pinned_leases, "pending": counts.pending}
    for lane in service._lanes.values():
        if isinstance(lane, LinkProducerLane):
            held["offers"] = lane.links.num_offers
        if isinstance(lane, ShmProducerLane):
            held["slab"] = lane._slab.num_bytes - lane._slab.free_bytes
        if isinstance(lane, CudaIpcProducerLane) and lane._slab is not None:
            held["gpu slab"] = lane._slab.extents.num_bytes - lane._slab.extents.free_bytes
    return held


def fetch(ticket: Ticket, transport: TransportSection, signal: int, timeout_s: float, device: str = "cpu") -> None:
    """A consumer that strikes in the middle of the one transfer that it asks for. Exits with what came of it."""
    raise SystemExit(asyncio.run(_fetch(ticket, transport, signal, timeout_s, torch.device(device))))


async def _fetch(
    ticket: Ticket, transport: TransportSection, signal: int, timeout_s: float, device: torch.device
) -> int:
    strike = _Strike(Fault("during", signal))
    fetcher = TensorFetcher(
        ChannelPool(MESSAGE_BYTES), new_incarnation_id("prefill"), host_id(), transport, FINGERPRINT, device
    )
    for lane in fetcher._lanes:
        if isinstance(lane, LinkConsumerLane):
            backend = _make_striking_gloo(lambda: strike.at("during"))
            lane.links._settings = replace(lane.links._settings, make_backend=backend)
        if isinstance(lane, CudaIpcConsumerLane):
            _strike_at_copy(lane, strike)
    try:
        fetched = await fetcher.fetch(ticket, timeout_s=timeout_s)
    except TriptychError:
        return REFUSED
    return ARRIVED if torch.equal(fetched.tensor.cpu(), TENSOR) else WRONG


def _strike_at_copy(lane: CudaIpcConsumerLane, strike: _Strike) -> None:
    """When the memory of the producer is mapped, and nothing of it was read."""
    copy_out = lane._copy_out

    def strike_and_copy(source: int, target: Tensor) -> int:
        strike.at("during")
        return copy_out(source, target)

    lane._copy_out = strike_and_copy  # type: ignore[method-assign]
