"""A producer and a consumer in one process, over real gRPC on a port of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import torch

from triptych.config import TransportSection
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import host_id
from triptych.transport.lease import LeaseTable
from triptych.transport.service import TensorService
from triptych.transport.ticket import Ticket, new_id

MIB = 1024 * 1024
FINGERPRINT = "weights-1"
TRANSPORT = TransportSection(shared_memory_bytes=32 * MIB, lease_s=5.0, unknown_ticket_wait_s=2.0)


@dataclass
class Pair:
    """One producer (leases, service, server) and one consumer (fetcher) that are joined by nothing but the network."""

    producer_id: str
    endpoint: str
    leases: LeaseTable
    service: TensorService
    server: RpcServer
    fetcher: TensorFetcher
    channels: ChannelPool
    transport: TransportSection

    def ticket(self, tensor: torch.Tensor, **changes: Any) -> Ticket:
        ticket = Ticket(
            ticket_id=new_id(),
            producer_id=self.producer_id,
            producer_endpoint=self.endpoint,
            producer_host_id=host_id(),
            model_fingerprint=FINGERPRINT,
            dtype=tensor.dtype,
            shape=tuple(tensor.shape),
            lanes=self.service.lanes,
        )
        return replace(ticket, **changes)

    async def settle(self) -> None:
        """Wait until releases have arrived and ended calls have let go."""
        await self.fetcher.close()
        assert await self.leases.wait_empty(4.0)
        assert self.leases.counters().pinned_leases == 0
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if "LeaseKeeper._heartbeat" in repr(task.get_coro())]
