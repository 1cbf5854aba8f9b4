"""CallRegistry: the calls that an actor is working on, each of which can be ended from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from triptych.errors import Cancelled, DeadlineExceeded, TriptychError, Unavailable
from triptych.rpc.deadline import Deadline

Result = TypeVar("Result")


@dataclass(eq=False)
class _Call:
    task: asyncio.Task[Any]
    error: TriptychError | None = None


class CallRegistry:
    """Runs each call as a task of its own. Whoever cancels the caller cancels the task; `end` does so with an error."""

    def __init__(self) -> None:
        self._calls: dict[str, _Call] = {}
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.is_closed = False

    @property
    def num_running(self) -> int:
        return len(self._calls)

    async def run(self, request_id: str, work: Coroutine[Any, Any, Result], deadline: Deadline) -> Result:
        """The result of `work`. Raises DeadlineExceeded when time runs out, and the error given to `end`.

        A repeated request id ends the call before it: whoever asks again has given up on that one.
        """
        if self.is_closed:
            work.close()
            raise Unavailable("the actor is draining and takes no new requests")
        self.end(request_id, Cancelled(f"request {request_id} was sent again"))
        call = self._calls[request_id] = _Call(asyncio.create_task(work))
        self._is_idle.clear()
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                result: Result = await call.task
                return result
        except TimeoutError:
            raise DeadlineExceeded(f"request {request_id} did not end before its deadline") from None
        except asyncio.CancelledError:
            if call.error is None or _is_cancelled():
                raise
            raise call.error from None
        finally:
            if self._calls.get(request_id) is call:
                del self._calls[request_id]
            if not self._calls:
                self._is_idle.set()

    def end(self, request_id: str, error: TriptychError) -> None:
        """The call lets go of what it has and raises `error`; an unknown id is nothing."""
        call = self._calls.get(request_id)
        if call is not None and call.error is None:
            call.error = error
            call.task.cancel()

    def end_all(self, error: TriptychError) -> None:
        for request_id in list(self._calls):
            self.end(request_id, error)

    def close(self) -> None:
        """No new calls from now on, or until `open`."""
        self.is_closed = True

    def open(self) -> None:
        self.is_closed = False

    async def wait_idle(self, timeout_s: float) -> bool:
        """True as soon as no call runs, False when that did not come in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_idle.wait()
        except TimeoutError:
            return False
        return True


def _is_cancelled() -> bool:
    """Was the caller's own task cancelled, beside the call's?"""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
