"""A walk beside its reader: a slow reader finds what came meanwhile as one list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from router.dispatch.chunk_pace import ChunkPace
from router.dispatch.token_queue import TokenQueue, Tokens
from router.dispatch.walk import Walk
from triptych.rpc.deadline import Deadline


class RunningWalk:
    """Begins at once. `end` it in any case."""

    def __init__(self, walk: Walk, num_choices: int, deadline: Deadline, pace: ChunkPace) -> None:
        self.walk = walk
        self._pace = pace
        self._output = TokenQueue(range(num_choices))
        self._task = asyncio.create_task(self._run(deadline))

    async def wait_for_tokens(self) -> None:
        """Returns when tokens came; raises what the walk raised instead."""
        await self._output.wait()

    async def tokens(self) -> AsyncGenerator[Tokens, None]:
        """Until the last of every answer; the first at once, later ones as the pace allows."""
        self._pace.begin_answer()
        try:
            while not self._output.is_done:
                tokens = await self._output.take()
                taken_s = time.monotonic()
                if self._output.is_done:
                    await self._task
                yield tokens
                await self._output.settle(taken_s + self._pace.interval_s - time.monotonic())
        finally:
            self._pace.end_answer()

    async def end(self) -> None:
        """Cancels what still runs and waits for it."""
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        self.walk.close()

    async def _run(self, deadline: Deadline) -> None:
        try:
            await self.walk.run(self._output, deadline)
        except Exception as error:
            self._output.fail(error)


async def first_with_tokens(
    first: RunningWalk, delay_s: float, begin_second: Callable[[], Awaitable[RunningWalk]]
) -> RunningWalk:
    """`first`, unless it has no tokens after `delay_s`: then whichever of it and a second one has tokens sooner.

    The other is ended. An error of one counts when the other has failed as well; that of the first is raised then.
    """
    waiting = asyncio.create_task(first.wait_for_tokens())
    try:
        await asyncio.wait([waiting], timeout=delay_s)
        if waiting.done():
            return first
        second = await begin_second()
    except BaseException:
        waiting.cancel()
        await first.end()
        raise
    walks = {waiting: first, asyncio.create_task(second.wait_for_tokens()): second}
    pending = set(walks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None:
                    await walks[_other(task, walks)].end()
                    return walks[task]
    except BaseException:
        await asyncio.gather(first.end(), second.end())
        raise
    finally:
        for task in pending:
            task.cancel()
    await second.end()
    return first


def _other(task: asyncio.Task[None], walks: dict[asyncio.Task[None], RunningWalk]) -> asyncio.Task[None]:
    return next(other for other in walks if other is not task)
