"""What a LeaseTable keeps of one ticket, and what it says when it lets go of one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

import torch

from triptych.errors import NotFound, TriptychError, Unavailable
from triptych.v1.admin_pb2 import LeaseCounters
from triptych.v1.tensor_pb2 import PrefillOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Lease:
    """A granted tensor (rows = dimension 0) and what belongs to it. Read it only between `pin` and `unpin`."""

    ticket_id: str
    tensor: torch.Tensor
    outcome: PrefillOutcome | None = None
    on_release: Callable[[], None] | None = None


@dataclass(frozen=True)
class LeaseCounts:
    """`granted == released + expired + held_leases` at any time. `held_bytes` counts a shared tensor once."""

    held_leases: int
    held_bytes: int
    pinned_leases: int
    pending: int
    granted: int
    released: int
    expired: int

    def to_proto(self) -> LeaseCounters:
        return LeaseCounters(
            held_leases=self.held_leases,
            held_bytes=self.held_bytes,
            granted_leases=self.granted,
            expired_leases=self.expired,
            pending_tickets=self.pending,
        )


class State(Enum):
    WANTED = auto()
    PENDING = auto()
    HELD = auto()
    FAILED = auto()
    GONE = auto()


@dataclass(eq=False)
class Entry:
    """One ticket. `error` is what pin raises in FAILED and GONE, and what remains after a deferred drop. `on_unwanted`
    runs when a pending one is released."""

    ticket_id: str
    state: State
    expires_at: float
    lease: Lease | None = None
    error: TriptychError | None = None
    num_pins: int = 0
    on_unwanted: Callable[[], None] | None = None
    waiters: set[asyncio.Future[None]] = field(default_factory=set)


def wake(entry: Entry) -> None:
    for waiter in entry.waiters:
        if not waiter.done():
            waiter.set_result(None)


def let_go(lease: Lease) -> None:
    if lease.on_release is None:
        return
    try:
        lease.on_release()
    except Exception:
        # One broken callback must not keep the others from being released.
        logger.exception("on_release of ticket %s failed", lease.ticket_id)


def released_error(ticket_id: str) -> TriptychError:
    return NotFound(f"ticket {ticket_id} was released", field="ticket_id")


def expired_error(ticket_id: str, lease_s: float) -> TriptychError:
    return NotFound(
        f"the lease of ticket {ticket_id} ran out ({lease_s:g} s without a heartbeat, transport.lease_s)",
        field="ticket_id",
    )


def unknown_error(ticket_id: str, wait_s: float) -> TriptychError:
    return NotFound(
        f"ticket {ticket_id} is unknown here, {wait_s:g} s after it was asked for (transport.unknown_ticket_wait_s)",
        field="ticket_id",
    )


def closed_error() -> TriptychError:
    return Unavailable("the actor is shutting down and has let go of its tensors")
