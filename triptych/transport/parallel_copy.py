"""ParallelCopy: one large copy by several threads, as one core can't use what the memory gives."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from triptych.transport.copying import ByteArray

# Below this waking a second thread costs as much as it saves.
PARALLEL_COPY_BYTES = 4 << 20
# Each block gives the interpreter's lock away and takes it again, so they are few.
_MAX_BLOCKS, _MIN_BLOCK_BYTES = 8, 1 << 20


class ParallelCopy:
    """Copies in the calling thread, helped by `num_threads` - 1 of its own, which the first large copy starts.

    Whoever is free takes the next block: a helper that gets no core costs nothing, since nobody waits for blocks that
    it has not begun. Any number of threads may call `copy` at once, and share the helpers.
    """

    def __init__(self, num_threads: int) -> None:
        assert num_threads >= 1
        self._num_helpers = min(num_threads, len(os.sched_getaffinity(0))) - 1
        self._helpers = ThreadPoolExecutor(max(1, self._num_helpers), thread_name_prefix="parallel-copy")

    def copy(self, source: ByteArray, target: ByteArray) -> None:
        """Copy bytes between arrays of one length. Nobody touches either any more when this returns, or raises."""
        assert len(source) == len(target)
        if self._num_helpers == 0 or len(source) < PARALLEL_COPY_BYTES:
            np.copyto(target, source)
            return
        blocks = itertools.count()
        helps: list[Future[None]] = []
        try:
            with suppress(RuntimeError):  # Closed, or the process is ending: no help then.
                for _ in range(self._num_helpers):
                    helps.append(self._helpers.submit(_copy_blocks, source, target, blocks))
            _copy_blocks(source, target, blocks)
        finally:
            for each in helps:
                if not each.cancel():
                    each.result()

    def close(self) -> None:
        """End the helpers when what they do is done; callers copy alone from then on. Idempotent."""
        self._helpers.shutdown(wait=False)


def _copy_blocks(source: ByteArray, target: ByteArray, blocks: Iterator[int]) -> None:
    """Copy the blocks that nobody else has taken: `blocks` gives each number to one thread only."""
    length = max(_MIN_BLOCK_BYTES, -(-len(source) // _MAX_BLOCKS))
    for block in blocks:
        start = block * length
        if start >= len(source):
            return
        np.copyto(target[start : start + length], source[start : start + length])
