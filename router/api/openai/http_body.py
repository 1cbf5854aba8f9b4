"""The body of a request, counted while it comes; and the client's going away, noticed while the answer is made."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive, Scope

from router.dispatch.byte_budget import ByteHold
from triptych.errors import Cancelled, RequestTooLarge

_LENGTH = b"content-length"


async def read_body(scope: Scope, receive: Receive, max_bytes: int, hold: ByteHold) -> bytes:
    """Raises RequestTooLarge before more than `max_bytes` are read, Overloaded when `hold` can't have them, Cancelled
    when the client goes away meanwhile."""
    promised = next((value for name, value in scope["headers"] if name == _LENGTH), b"")
    if promised.isdigit() and int(promised[:20]) > max_bytes:
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away before its request was read")
        piece = message.get("body", b"")
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        hold.add(len(piece))
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Runs `work`, and cancels it when the client goes away, in which case Cancelled is raised. `receive` must have
    given the whole body already."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client went away")
        task.result()
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body has more than {max_bytes} bytes (limits.max_message_bytes)")
