"""StartsOnce: `start` of an actor may be asked for again, by a controller that takes over from one that ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class StartsOnce(Generic[Result]):
    """Runs `work` when it is first asked for; who asks again waits for the same, and gets the same error."""

    def __init__(self) -> None:
        self._work: asyncio.Future[Result] | None = None

    async def __call__(self, work: Callable[[], Awaitable[Result]]) -> Result:
        if self._work is None:
            self._work = asyncio.ensure_future(work())
        # Whoever asks may go away; the work goes on for the others.
        return await asyncio.shield(self._work)
