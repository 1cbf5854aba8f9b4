"""TensorFetcher: gets what a ticket names, over the best lane that works."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

import torch

from triptych.config import TransportSection
from triptych.errors import FailedPrecondition, without_frames
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.transport.device_id import with_index
from triptych.transport.header import check_fingerprint
from triptych.transport.keeper import LeaseKeeper
from triptych.transport.lane_counters import LaneLedger
from triptych.transport.lane_memory import LaneMemory
from triptych.transport.lanes import Arrival, ConsumerLane, FetchOrder, LaneFailure, LaneNotReady, too_late
from triptych.transport.registry import ConsumerSide, make_consumer_lanes
from triptych.transport.ticket import Ticket
from triptych.v1.admin_pb2 import LaneCounters
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
    """Fetches for one consumer (an actor's incarnation) on one event loop; `device` is where it needs the tensors,
    and where lanes between GPUs leave them.

    Raises ConfigurationError for an unknown name in `transport.lanes`.
    """

    def __init__(
        self,
        channels: ChannelPool,
        consumer_id: str,
        host_id: str,
        transport: TransportSection,
        model_fingerprint: str,
        device: torch.device | None = None,
    ) -> None:
        side = ConsumerSide(consumer_id, host_id, transport, channels, with_index(device or torch.device("cpu")))
        self._lanes = make_consumer_lanes(side)
        self._memory = LaneMemory(transport.lane_retry_s)
        self._ledger = LaneLedger(lane.name for lane in self._lanes)
        self._keeper = LeaseKeeper(channels, transport.lease_s)
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

    def keeping(self, ticket: Ticket) -> AbstractAsyncContextManager[None]:
        """Keep a ticket alive that is a lease on others, see `parts_of`; released when the block is left."""
        return self._keeper.keep(ticket)

    def release(self, ticket: Ticket) -> None:
        """Give up a ticket that was never fetched, without waiting for the producer."""
        self._keeper.release(ticket)

    def lane_counters(self) -> list[LaneCounters]:
        """What was fetched over which lane so far."""
        return self._ledger.counters()

    async def close(self) -> None:
        """Wait for the releases under way, and close the links. Close the channels after this."""
        await self._keeper.close()
        for lane in self._lanes:
            await lane.close()

    def _lanes_to(self, ticket: Ticket) -> list[ConsumerLane]:
        lanes = [lane for lane in self._lanes if lane.name in ticket.lanes and lane.can_reach(ticket)]
        if not lanes:
            allowed = ", ".join(lane.name for lane in self._lanes)
            raise FailedPrecondition(
                f"no lane leads to {ticket.producer_id}: it serves {', '.join(ticket.lanes) or 'none'}, "
                f"transport.lanes allows {allowed}, and shm needs a common host",
                field="transport.lanes",
            )
        # Where every lane has failed a moment ago, all are tried again.
        return [lane for lane in lanes if not self._memory.is_left_out(ticket.producer_id, lane.name)] or lanes

    async def _over_first_that_delivers(self, lanes: Sequence[ConsumerLane], order: FetchOrder) -> FetchedTensor:
        for lane in lanes:
            start_s = time.monotonic()
            try:
                arrival = await lane.fetch(replace(order, is_last_lane=lane is lanes[-1]))
            except LaneNotReady:
                logger.info("lane %s to %s is being set up", lane.name, order.ticket.producer_id)
                continue
            except LaneFailure as failure:
                # This frame will hold the tensor that comes over the next lane.
                error = without_frames(failure.error)
                self._note_failure(lane.name, failure, order.ticket)
                continue
            return self._note_arrival(lane.name, arrival, order.ticket, time.monotonic() - start_s - arrival.wait_s)
        raise error

    def _note_arrival(self, lane: str, arrival: Arrival, ticket: Ticket, seconds: float) -> FetchedTensor:
        self._memory.note_success(ticket.producer_id, lane)
        self._ledger.note_transfer(lane, arrival.tensor.nbytes, seconds)
        return FetchedTensor(arrival.tensor, arrival.outcome, lane, seconds, arrival.wait_s)

    def _note_failure(self, lane: str, failure: LaneFailure, ticket: Ticket) -> None:
        self._ledger.note_failure(lane)
        # Not the error itself: who keeps the record would keep its frames, and with them the tensor that came after.
        reason = failure.error.message
        if failure.is_passing:
            logger.info("lane %s could not take ticket %s: %s", lane, ticket.ticket_id, reason)
            return
        pause_s = self._memory.note_failure(ticket.producer_id, lane)
        logger.warning("lane %s to %s failed and is left out for %g s: %s", lane, ticket.producer_id, pause_s, reason)
