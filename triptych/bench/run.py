"""The run: send each request at its time, let no answer hold up the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from triptych.bench.backends import Backend, BenchResult
from triptych.bench.workload import BenchRequest


async def run_load(
    backend: Backend,
    requests: Sequence[BenchRequest],
    max_concurrency: int,
    on_finished: Callable[[BenchResult], None] = lambda result: None,
) -> list[BenchResult]:
    """Results in the order of `requests`, which are ordered by arrival.

    max_concurrency 0 is an open loop. Otherwise a request waits for its turn after its arrival; that wait is not part
    of its figures, as in `vllm bench serve`: with a rate of inf this is the closed loop.
    """
    turns = asyncio.Semaphore(max_concurrency) if max_concurrency else None
    started_s = time.perf_counter()

    async def send(request: BenchRequest) -> BenchResult:
        async with AsyncExitStack() as stack:
            if turns is not None:
                await stack.enter_async_context(turns)
            result = await backend.send(request)
        on_finished(result)
        return result

    tasks = []
    async with asyncio.TaskGroup() as group:
        for request in requests:
            delay_s = request.arrival_s - (time.perf_counter() - started_s)
            # Also when it is late: those that were sent must get to run.
            await asyncio.sleep(max(0.0, delay_s))
            tasks.append(group.create_task(send(request)))
    return [task.result() for task in tasks]
