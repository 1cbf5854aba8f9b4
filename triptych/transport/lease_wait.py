"""Waiting for the tensor of a ticket: as long as the caller likes while it is being made, not so long if unknown."""

from __future__ import annotations

import asyncio

from triptych.errors import DeadlineExceeded
from triptych.transport.lease_entry import Entry, State, unknown_error


async def wait_until_made(entry: Entry, timeout_s: float, unknown_wait_s: float) -> None:
    """Return when `entry` is neither WANTED nor PENDING.

    Raises DeadlineExceeded after `timeout_s`, NotFound when the producer has not announced it within `unknown_wait_s`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    unknown_deadline = loop.time() + unknown_wait_s
    while entry.state in (State.WANTED, State.PENDING):
        is_unknown = entry.state is State.WANTED
        try:
            async with asyncio.timeout_at(min(deadline, unknown_deadline) if is_unknown else deadline):
                await _changed(entry)
        except TimeoutError:
            if entry.state in (State.WANTED, State.PENDING) and loop.time() >= deadline:
                raise DeadlineExceeded(
                    f"the tensor of ticket {entry.ticket_id} was not ready within {timeout_s:.3g} s"
                ) from None
            if entry.state is State.WANTED:
                raise unknown_error(entry.ticket_id, unknown_wait_s) from None


async def _changed(entry: Entry) -> None:
    """Return after the next change of `entry`."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    entry.waiters.add(waiter)
    try:
        await waiter
    finally:
        entry.waiters.discard(waiter)
