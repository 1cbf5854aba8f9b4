"""Work that several callers wait for and that is done once."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from triptych.errors import Unavailable

Result = TypeVar("Result")


@dataclass(eq=False)
class _Shared(Generic[Result]):
    key: Hashable
    task: "asyncio.Task[Result]"
    waiters: "set[asyncio.Future[Result]]" = field(default_factory=set)


class InFlight(Generic[Result]):
    """Tasks by key, each with the futures of those who wait for it. Lives on the event loop."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared[Result]] = {}

    def __len__(self) -> int:
        return len(self._shared)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._shared

    def join(self, key: Hashable, start: "Callable[[], asyncio.Task[Result]]") -> "asyncio.Future[Result]":
        """A future of one's own for the work under `key`, which `start` begins when nobody has.

        Cancelling the future is leaving; when the last one leaves, the task is cancelled. A task that was cancelled by
        others ends the futures with Unavailable.
        """
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(key, start())
            shared.task.add_done_callback(partial(self._finish, shared))
        waiter: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        shared.waiters.add(waiter)
        waiter.add_done_callback(partial(self._leave, shared))
        return waiter

    def _leave(self, shared: _Shared[Result], waiter: "asyncio.Future[Result]") -> None:
        shared.waiters.discard(waiter)
        if not shared.waiters and not shared.task.done():
            # Newcomers start afresh instead of joining work that is being given up.
            self._forget(shared)
            shared.task.cancel()

    def _finish(self, shared: _Shared[Result], task: "asyncio.Task[Result]") -> None:
        self._forget(shared)
        error = Unavailable("the work was dropped") if task.cancelled() else task.exception()
        for waiter in [waiter for waiter in shared.waiters if not waiter.done()]:
            if error is None:
                waiter.set_result(task.result())
            else:
                waiter.set_exception(error)

    def _forget(self, shared: _Shared[Result]) -> None:
        if self._shared.get(shared.key) is shared:
            del self._shared[shared.key]
