"""LeaseTable: what a producer holds for others, from the announcement of a ticket to the moment the tensor may go.

A ticket walks through these states; every way out of HELD runs the lease's `on_release` exactly once:

    (unknown) -> WANTED    a consumer asks before the producer has heard of the ticket
              -> PENDING   expect: announced, no tensor yet
              -> HELD      grant: the tensor is there; consumers pin it while they read
              -> FAILED    fail: consumers get the error
              -> GONE      released, or a held lease ran out; remembered for one more lease_s, so that a late fetch
                           gets a clear answer and a late grant lets go at once
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import torch

from triptych.errors import TriptychError
from triptych.transport.lease_entry import (
    Entry,
    Lease,
    LeaseCounts,
    State,
    closed_error,
    expired_error,
    let_go,
    released_error,
    wake,
)
from triptych.transport.lease_ledger import LeaseLedger
from triptych.transport.lease_wait import wait_until_made
from triptych.v1.tensor_pb2 import PrefillOutcome

__all__ = ["Lease", "LeaseCounts", "LeaseTable"]

_MAX_EARLY_RELEASES = 16_384


class LeaseTable:
    """Tickets of one producer. Belongs to one event loop; other threads go through `loop.call_soon_threadsafe`.

    `lease_s` is how long a ticket lives without a heartbeat, `unknown_ticket_wait_s` how long `pin` waits for a
    ticket nobody has announced. `clock` gives seconds and only decides what has run out.
    """

    def __init__(
        self, lease_s: float, unknown_ticket_wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease_s = lease_s
        self._unknown_ticket_wait_s = unknown_ticket_wait_s
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._early: deque[str] = deque()
        self._ledger = LeaseLedger()
        self._is_closed = False

    # What the producer says.

    def expect(
        self, ticket_id: str, lease_s: float | None = None, on_unwanted: Callable[[], None] | None = None
    ) -> None:
        """Announce a tensor that is being made. Nothing happens if the ticket was announced, granted or released.

        `on_unwanted` runs if it was released, or is while it is being made: nobody needs it to be finished.
        """
        entry = self._entries.get(ticket_id)
        if self._is_closed or (entry is not None and entry.state is not State.WANTED):
            if entry is not None and entry.state is State.GONE and on_unwanted is not None:
                on_unwanted()
            return
        entry = entry or self._new_entry(ticket_id, State.PENDING)
        entry.state, entry.on_unwanted = State.PENDING, on_unwanted
        entry.expires_at = self._clock() + (self._lease_s if lease_s is None else lease_s)
        wake(entry)

    def grant(
        self,
        ticket_id: str,
        tensor: torch.Tensor,
        *,
        outcome: PrefillOutcome | None = None,
        on_release: Callable[[], None] | None = None,
    ) -> None:
        """Hand the tensor over: fetches go on, and `on_release` runs once, when nobody needs it any more.

        The bytes must be final: a CUDA tensor's stream is synchronized first. `on_release` runs right away when the
        ticket was released, has failed or holds a tensor already, or the table is closed.
        """
        lease = Lease(ticket_id, tensor, outcome, on_release)
        entry = self._entries.get(ticket_id)
        if self._is_closed or (entry is not None and entry.state not in (State.WANTED, State.PENDING)):
            self._ledger.note_refused()
            let_go(lease)
            return
        entry = entry or self._new_entry(ticket_id, State.HELD)
        entry.state, entry.lease, entry.expires_at = State.HELD, lease, self._clock() + self._lease_s
        self._ledger.note_held(tensor)
        wake(entry)

    def fail(self, ticket_id: str, error: TriptychError) -> None:
        """Waiting and later fetches raise `error`. A tensor held already is dropped, a pinned one at its last unpin."""
        entry = self._entries.get(ticket_id)
        if entry is None:
            entry = self._new_entry(ticket_id, State.FAILED)
        if entry.state is State.HELD:
            self._drop_when_unread(entry, error)
        elif entry.state is not State.GONE:
            entry.state, entry.error, entry.expires_at = State.FAILED, error, self._clock() + self._lease_s
        wake(entry)

    # What consumers ask for.

    async def pin(self, ticket_id: str, timeout_s: float) -> Lease:
        """Wait for the tensor and keep it until `unpin`.

        Raises the error given to `fail`; NotFound for a ticket that was released, ran out, or is not announced within
        unknown_ticket_wait_s; DeadlineExceeded after `timeout_s`; Unavailable when the table is closed.
        """
        if self._is_closed:
            raise closed_error()
        entry = self._entries.get(ticket_id) or self._new_entry(ticket_id, State.WANTED)
        try:
            await wait_until_made(entry, timeout_s, self._unknown_ticket_wait_s)
        finally:
            if entry.state is State.WANTED and not entry.waiters:  # The last one to wait for it forgets it.
                self._entries.pop(ticket_id, None)
        if entry.error is not None:
            raise copy.copy(entry.error)
        assert entry.lease is not None
        entry.num_pins += 1
        return entry.lease

    def unpin(self, lease: Lease) -> None:
        """Undo one `pin`; the lease goes now if it was released (or failed) meanwhile."""
        entry = self._entries[lease.ticket_id]
        assert entry.lease is lease and entry.num_pins > 0, f"ticket {lease.ticket_id} is not pinned"
        entry.num_pins -= 1
        if entry.num_pins == 0 and entry.error is not None:
            self._drop(entry)

    @asynccontextmanager
    async def pinned(self, ticket_id: str, timeout_s: float) -> AsyncIterator[Lease]:
        """`pin` for the length of a `with` block."""
        lease = await self.pin(ticket_id, timeout_s)
        try:
            yield lease
        finally:
            self.unpin(lease)

    def release(self, ticket_ids: Iterable[str]) -> None:
        """The consumers need these no more. Unknown ids are remembered (16,384 at most): a tensor granted later
        goes at once."""
        for ticket_id in ticket_ids:
            entry = self._entries.get(ticket_id) or self._new_early(ticket_id)
            if entry.state is State.HELD:
                self._drop_when_unread(entry, released_error(ticket_id))
            elif entry.state is not State.GONE:
                is_being_made = entry.state is State.PENDING
                self._bury(entry, released_error(ticket_id))
                if is_being_made and entry.on_unwanted is not None:
                    entry.on_unwanted()

    def renew(self, ticket_ids: Iterable[str]) -> list[str]:
        """Heartbeat: these live for another lease_s. Returns the ids that are not held or expected (any more)."""
        unknown = []
        for ticket_id in ticket_ids:
            entry = self._entries.get(ticket_id)
            if entry is None or entry.state not in (State.PENDING, State.HELD) or entry.error is not None:
                unknown.append(ticket_id)
            else:
                entry.expires_at = max(entry.expires_at, self._clock() + self._lease_s)
        return unknown

    # Housekeeping.

    def sweep(self) -> int:
        """Drop what ran out and nobody is reading; returns how many tickets went."""
        now = self._clock()
        overdue = [
            entry
            for entry in self._entries.values()
            if entry.expires_at <= now and entry.num_pins == 0 and entry.state is not State.WANTED
        ]
        for entry in overdue:
            if entry.state is State.HELD:
                entry.error = expired_error(entry.ticket_id, self._lease_s)
                self._drop(entry, is_expired=True)
            elif entry.state is State.PENDING:
                # Forgotten, not buried: its producer may still be at work, and what it grants gets a lease of its own.
                self._bury(entry, expired_error(entry.ticket_id, self._lease_s))
                self._entries.pop(entry.ticket_id, None)
            else:
                self._entries.pop(entry.ticket_id, None)
        return len(overdue)

    async def run(self) -> None:
        """Sweep for ever; the owner cancels it."""
        while True:
            await asyncio.sleep(min(1.0, self._lease_s / 4))
            self.sweep()

    async def wait_empty(self, timeout_s: float) -> bool:
        """True as soon as nothing is held or announced, False if that took longer than `timeout_s` (for draining)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._ledger.num_held > 0 or self.counters().pending > 0:
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(min(0.05, timeout_s))
        return True

    def close(self) -> None:
        """Drop everything, pinned leases at their last unpin; waiting and later pins raise Unavailable. Idempotent."""
        self._is_closed = True
        for entry in list(self._entries.values()):
            if entry.state is State.HELD:
                self._drop_when_unread(entry, closed_error())
            elif entry.state is not State.GONE:
                self._bury(entry, closed_error())

    def counters(self) -> LeaseCounts:
        entries = self._entries.values()
        return self._ledger.counts(
            pinned_leases=sum(entry.num_pins > 0 for entry in entries),
            pending=sum(entry.state is State.PENDING for entry in entries),
        )

    def _new_entry(self, ticket_id: str, state: State) -> Entry:
        entry = self._entries[ticket_id] = Entry(ticket_id, state, self._clock() + self._lease_s)
        return entry

    def _new_early(self, ticket_id: str) -> Entry:
        """For a ticket released before it was announced; a peer that names ever new ones can't fill the table."""
        self._early.append(ticket_id)
        if len(self._early) > _MAX_EARLY_RELEASES:
            oldest = self._entries.get(self._early.popleft())
            if oldest is not None and oldest.state is State.GONE:
                del self._entries[oldest.ticket_id]
        return self._new_entry(ticket_id, State.WANTED)

    def _drop_when_unread(self, entry: Entry, error: TriptychError) -> None:
        """HELD -> GONE now, or at the last unpin. The first reason stays."""
        entry.error = entry.error or error
        if entry.num_pins == 0:
            self._drop(entry)

    def _drop(self, entry: Entry, is_expired: bool = False) -> None:
        lease = entry.lease
        assert entry.state is State.HELD and lease is not None and entry.num_pins == 0 and entry.error is not None
        entry.lease = None
        self._ledger.note_dropped(lease.tensor, is_expired=is_expired)
        self._bury(entry, entry.error)
        let_go(lease)

    def _bury(self, entry: Entry, error: TriptychError) -> None:
        entry.state, entry.error, entry.expires_at = State.GONE, error, self._clock() + self._lease_s
        wake(entry)
