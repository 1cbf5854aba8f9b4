"""Copies that are shared between threads, and copies beside the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from triptych.transport.copying import INLINE_COPY_BYTES, ByteArray, run_copy
from triptych.transport.parallel_copy import PARALLEL_COPY_BYTES, ParallelCopy


@pytest.fixture(params=[1, 2, 3])
def parallel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ParallelCopy]:
    """With one, two and three threads, however many cores the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    copy = ParallelCopy(request.param)
    yield copy
    copy.close()


def random_bytes(num_bytes: int, seed: int = 0) -> ByteArray:
    return np.frombuffer(np.random.default_rng(seed).bytes(num_bytes), np.uint8)


@pytest.mark.parametrize(
    "num_bytes", [0, 1, PARALLEL_COPY_BYTES - 1, PARALLEL_COPY_BYTES, PARALLEL_COPY_BYTES + 1, (17 << 20) + 333]
)
def test_every_byte_is_copied_and_none_beside_them(parallel: ParallelCopy, num_bytes: int) -> None:
    source, memory = random_bytes(num_bytes), np.zeros(num_bytes + 128, np.uint8)
    parallel.copy(source, memory[64 : 64 + num_bytes])
    assert np.array_equal(memory[64 : 64 + num_bytes], source)
    assert not memory[:64].any() and not memory[64 + num_bytes :].any()


def test_callers_share_the_helpers(parallel: ParallelCopy) -> None:
    sources = [random_bytes(PARALLEL_COPY_BYTES, seed) for seed in range(12)]
    targets = [np.zeros(PARALLEL_COPY_BYTES, np.uint8) for _ in sources]
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(parallel.copy, sources, targets))
    assert all(np.array_equal(source, target) for source, target in zip(sources, targets, strict=True))


def test_a_helper_that_does_not_come_is_not_waited_for_and_touches_nothing_later(parallel: ParallelCopy) -> None:
    go, source, target = threading.Event(), random_bytes(PARALLEL_COPY_BYTES), np.zeros(PARALLEL_COPY_BYTES, np.uint8)
    busy = [parallel._helpers.submit(go.wait, 30) for _ in range(3)]
    try:
        parallel.copy(source, target)
        assert np.array_equal(source, target) and not any(each.done() for each in busy)
        target[:] = 0
    finally:
        go.set()
    assert all(each.result() for each in busy)
    parallel._helpers.submit(int).result()  # Whatever stood in the queue before this has had its turn.
    assert not target.any()


def test_errors_are_the_callers(parallel: ParallelCopy) -> None:
    target = np.zeros(PARALLEL_COPY_BYTES, np.uint8)
    target.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        parallel.copy(random_bytes(PARALLEL_COPY_BYTES), target)


def test_after_close_callers_copy_alone(parallel: ParallelCopy) -> None:
    parallel.close()
    parallel.close()
    source, target = random_bytes(PARALLEL_COPY_BYTES), np.zeros(PARALLEL_COPY_BYTES, np.uint8)
    parallel.copy(source, target)
    assert np.array_equal(source, target)


async def test_a_cancelled_caller_stays_until_the_copy_has_ended() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def copy() -> None:
        begun.set()
        assert go.wait(30)
        ended.set()

    caller = asyncio.create_task(run_copy(INLINE_COPY_BYTES, copy))
    assert await asyncio.to_thread(begun.wait, 30)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0.01)
        assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_a_copy_that_fails_says_so() -> None:
    def fail(message: str) -> None:
        raise OSError(message)

    for num_bytes in (1, INLINE_COPY_BYTES):
        with pytest.raises(OSError, match="out of order"):
            await run_copy(num_bytes, fail, message="out of order")
