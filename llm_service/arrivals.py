"""Arrivals: a request's embeddings on their way, while its sequences are in the engine already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from triptych.transport.fetcher import FetchedTensor

Result = TypeVar("Result")
Supply = Callable[[list["Tensor | None"], int, Tensor], None]
Fetch = Coroutine[Any, Any, FetchedTensor]


class Arrivals:
    """Owns the fetches of one request. tensors: [length, hidden] for each media span, None until it has arrived;
    filled by `supply` on the engine's thread alone, and shared by all sequences of the request.

    ends: where each media span ends in the prompt. `close` in any case: what has not arrived by then is cancelled, and
    its ticket released.
    """

    def __init__(self, fetches: list[Fetch], ends: Sequence[int], supply: Supply) -> None:
        self.tensors: list[Tensor | None] = [None] * len(fetches)
        self.fetched: dict[int, FetchedTensor] = {}
        self._ends = ends
        self._supply = supply
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._tasks = [asyncio.create_task(fetch) for fetch in fetches]
        for index, task in enumerate(self._tasks):
            task.add_done_callback(partial(self._arrived, index))

    async def beside(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns or raises; when a fetch fails before that its error, and `work` is cancelled."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task, self._failure), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._failure.result()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    def skip(self, num_tokens: int) -> None:
        """Media that end within the first `num_tokens` are not needed: their tickets are released. From any thread."""
        unneeded = [task for task, end in zip(self._tasks, self._ends, strict=True) if end <= num_tokens]
        try:
            for task in unneeded:
                self._loop.call_soon_threadsafe(task.cancel)
        except RuntimeError:
            # The loop was closed under the request; nothing is fetched any more.
            return

    async def close(self) -> None:
        """Idempotent."""
        for task in self._tasks:
            task.cancel()
        if not self._failure.done():
            self._failure.cancel()
        await asyncio.gather(*self._tasks, self._failure, return_exceptions=True)

    def _arrived(self, index: int, task: asyncio.Task[FetchedTensor]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            fetched = self.fetched[index] = task.result()
            self._supply(self.tensors, index, fetched.tensor)
        elif not self._failure.done():
            self._failure.set_exception(error)
