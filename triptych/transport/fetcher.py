"""TensorFetcher: gets what a ticket names, over the best lane that works."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triptych.config import TransportSection
from triptych.errors import FailedPrecondition
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.transport.header import check_fingerprint
from triptych.transport.keeper import LeaseKeeper
from triptych.transport.lanes import ConsumerLane, FetchOrder, LaneFailure, too_late
from triptych.transport.local import LocalProducers
from triptych.transport.registry import ConsumerSide, make_consumer_lanes
from triptych.transport.ticket import Ticket
from triptych.v1.tensor_pb2 import PrefillOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FetchedTensor:
    """A tensor of the caller's own, checked against its ticket, without the rows before first_row.

    `wait_s` is the time until the producer offered it (lane shm: had laid it into shared memory), `seconds` the time
    from then until it was here.
    """

    tensor: torch.Tensor
    outcome: PrefillOutcome | None
    lane: str
    seconds: float
    wait_s: float


class TensorFetcher:
    """Fetches for one consumer (an actor's incarnation) on one event loop.

    Raises ConfigurationError for an unknown name in `transport.lanes`. `local_producers` is the object in which
    producers of this process are registered; without it the lane "local" reaches nobody.
    """

    def __init__(
        self,
        channels: ChannelPool,
        consumer_id: str,
        host_id: str,
        transport: TransportSection,
        model_fingerprint: str,
        local_producers: LocalProducers | None = None,
    ) -> None:
        local_producers = local_producers or LocalProducers()
        side = ConsumerSide(consumer_id, host_id, transport, channels, local_producers)
        self._lanes = make_consumer_lanes(side)
        self._keeper = LeaseKeeper(channels, local_producers, transport.lease_s)
        self._model_fingerprint = model_fingerprint

    async def fetch(self, ticket: Ticket, *, first_row: int = 0, timeout_s: float) -> FetchedTensor:
        """Wait for the tensor of `ticket` and take over its rows from `first_row` on; releases the lease in any case.

        Raises the error that the producer gave the ticket; Unavailable when the producer is gone or was replaced;
        NotFound when it has let go of the ticket; FailedPrecondition for other weights or when no lane leads there;
        IntegrityError when what came is not what the ticket says; DeadlineExceeded after `timeout_s`.
        """
        deadline = Deadline.after(timeout_s)
        try:
            async with asyncio.timeout(timeout_s), self._keeper.keep(ticket):
                check_fingerprint(ticket.model_fingerprint, self._model_fingerprint, f"ticket {ticket.ticket_id}")
                order = FetchOrder(ticket, first_row, deadline)
                return await self._over_first_that_delivers(self._lanes_to(ticket), order)
        except TimeoutError:
            raise too_late(ticket) from None

    def release(self, ticket: Ticket) -> None:
        """Give up a ticket that was never fetched, without waiting for the producer."""
        self._keeper.release(ticket)

    async def close(self) -> None:
        """Wait for the releases under way. Close the channels after this."""
        await self._keeper.close()

    def _lanes_to(self, ticket: Ticket) -> list[ConsumerLane]:
        lanes = [lane for lane in self._lanes if lane.name in ticket.lanes and lane.can_reach(ticket)]
        if not lanes:
            allowed = ", ".join(lane.name for lane in self._lanes)
            raise FailedPrecondition(
                f"no lane leads to {ticket.producer_id}: it serves {', '.join(ticket.lanes) or 'none'}, "
                f"transport.lanes allows {allowed}, and shm and local need a common host or process",
                field="transport.lanes",
            )
        return lanes

    @staticmethod
    async def _over_first_that_delivers(lanes: Sequence[ConsumerLane], order: FetchOrder) -> FetchedTensor:
        for lane in lanes:
            start_s = time.monotonic()
            try:
                arrival = await lane.fetch(order)
            except LaneFailure as failure:
                logger.warning("lane %s failed for ticket %s: %s", lane.name, order.ticket.ticket_id, failure)
                error = failure.error
                continue
            seconds = time.monotonic() - start_s - arrival.wait_s
            return FetchedTensor(arrival.tensor, arrival.outcome, lane.name, seconds, arrival.wait_s)
        raise error
