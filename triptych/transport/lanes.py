"""What a lane is: one way for the rows of a tensor to get from the actor that holds them to the one that needs them.

A lane has two ends. The consumer's end drives: it opens Fetch, says where the rows shall go and ends when they are
there and checked. The producer's end runs inside that Fetch call, while the lease is pinned, and ends when it does;
whatever it holds for the transfer it lets go of in a `finally`. A lane whose receiver must be ready before the sender
may start (NCCL) names the transfer in the header, waits in `send` for the consumer's word on a stream of its own
(`links`), and both ends are held to the deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from triptych.errors import DeadlineExceeded, Overloaded, TriptychError
from triptych.rpc.deadline import Deadline
from triptych.transport.ticket import TensorSpec, Ticket
from triptych.v1.tensor_pb2 import FetchResponse, PrefillOutcome, TensorHeader

# Fields of the errors with which a producer refuses: another incarnation was meant, the lane is not served, the lane's
# memory is used up. They tell a consumer whether another lane may do.
PRODUCER_FIELD = "producer_id"
LANE_FIELD = "lane"
LANE_MEMORY_FIELD = "transport.shared_memory_bytes"
CUDA_MEMORY_FIELD = "transport.cuda_slab_bytes"

# Takes a message, or one that is encoded already.
Write = Callable[[FetchResponse | bytes], Awaitable[None]]


class LaneFailure(Exception):
    """The lane, not the tensor, is at fault: the next lane may do. `error` is for the caller when there is none."""

    def __init__(self, error: TriptychError) -> None:
        super().__init__(error.message)
        self.error = error

    @property
    def is_passing(self) -> bool:
        """Used up just now, but not broken: the very next transfer may use the lane again."""
        return isinstance(self.error, Overloaded)


class LaneNotReady(Exception):
    """The lane is being set up, which this transfer need not wait for: there is another lane."""


@dataclass(frozen=True)
class FetchOrder:
    """What a consumer wants: the rows of `ticket` from `first_row` on, before `deadline`.

    `is_last_lane`: no other lane is left to try, so that the lane had better wait until it is set up.
    Raises InvalidRequest when the ticket's tensor has fewer than `first_row` rows.
    """

    ticket: Ticket
    first_row: int
    deadline: Deadline
    is_last_lane: bool = True

    def __post_init__(self) -> None:
        self.ticket.spec.from_row(self.first_row)

    @property
    def spec(self) -> TensorSpec:
        """dtype and shape of what must arrive."""
        return self.ticket.spec.from_row(self.first_row)


@dataclass(frozen=True)
class Arrival:
    """What came: a tensor of the consumer's own, checked against its ticket. `wait_s`: until the producer had it."""

    tensor: torch.Tensor
    outcome: PrefillOutcome | None
    wait_s: float


def too_late(ticket: Ticket) -> DeadlineExceeded:
    """The error of a fetch whose deadline has passed."""
    return DeadlineExceeded(
        f"ticket {ticket.ticket_id}: not handed over in time by {ticket.producer_id} at {ticket.producer_endpoint}"
    )


class ConsumerLane(Protocol):
    """The receiving end. One object serves all fetches of a process."""

    @property
    def name(self) -> str: ...

    def can_reach(self, ticket: Ticket) -> bool:
        """Whether this lane leads from the ticket's producer to here at all."""
        ...

    async def fetch(self, order: FetchOrder) -> Arrival:
        """Wait for the tensor and take it over.

        Raises LaneFailure where another lane may do better, LaneNotReady unless it is the last one, else the
        TriptychError that the caller is to see: the producer's own failure, Unavailable when it is gone, IntegrityError
        when it does not fit the ticket.
        """
        ...

    async def close(self) -> None:
        """Let go of memory and links; idempotent."""
        ...


class ProducerLane(Protocol):
    """The sending end. One object serves all fetches from a producer."""

    @property
    def name(self) -> str: ...

    async def send(self, rows: torch.Tensor, header: TensorHeader, write: Write, deadline: Deadline) -> None:
        """Hand over `rows` (on any device). `header` is complete but for this lane's own part; it is written first.

        Raises Overloaded when the lane's own memory is used up.
        """
        ...

    def close(self) -> None:
        """Let go of memory and links; idempotent."""
        ...
