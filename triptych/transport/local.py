"""Lane "local": producer and consumer in one process; the rows are copied straight out of the producer's lease."""

from __future__ import annotations

import time

import torch

from triptych.errors import Unavailable
from triptych.transport.copying import run_copy
from triptych.transport.header import check_spec
from triptych.transport.lanes import Arrival, FetchOrder
from triptych.transport.lease import LeaseTable
from triptych.transport.ticket import TensorSpec, Ticket


class LocalProducers:
    """The lease tables of the producers in this process, by producer id; given to producers and consumers alike."""

    def __init__(self) -> None:
        self._tables: dict[str, LeaseTable] = {}

    def register(self, producer_id: str, leases: LeaseTable) -> None:
        self._tables[producer_id] = leases

    def unregister(self, producer_id: str) -> None:
        self._tables.pop(producer_id, None)

    def get(self, producer_id: str) -> LeaseTable | None:
        return self._tables.get(producer_id)


class LocalConsumerLane:
    """Consumer's end. There is no producer's end: the consumer reads under a pinned lease."""

    name = "local"

    def __init__(self, producers: LocalProducers) -> None:
        self._producers = producers

    def can_reach(self, ticket: Ticket) -> bool:
        return self._producers.get(ticket.producer_id) is not None

    async def fetch(self, order: FetchOrder) -> Arrival:
        ticket = order.ticket
        leases = self._producers.get(ticket.producer_id)
        if leases is None:
            raise Unavailable(f"producer {ticket.producer_id} has left this process")
        start_s = time.monotonic()
        async with leases.pinned(ticket.ticket_id, order.deadline.remaining_s()) as lease:
            wait_s = time.monotonic() - start_s
            check_spec(TensorSpec.of(lease.tensor), ticket.spec, ticket)
            rows = lease.tensor.detach()[order.first_row :]
            # A copy, because the producer may use the memory again as soon as the lease is gone.
            tensor = await run_copy(rows.nbytes, _copy, rows)
            return Arrival(tensor, lease.outcome, wait_s)


def _copy(rows: torch.Tensor) -> torch.Tensor:
    return rows.clone(memory_format=torch.contiguous_format)
