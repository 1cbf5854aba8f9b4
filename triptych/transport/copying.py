"""Bytes of tensors, and copies that keep the event loop free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from triptych.transport.checksum import crc32_of_bytes

P = ParamSpec("P")
T = TypeVar("T")

ByteArray = np.ndarray[Any, np.dtype[np.uint8]]

# Below this a hop to a thread costs more than the copy.
INLINE_COPY_BYTES = 128 * 1024
COPY_BLOCK_BYTES = 256 * 1024


def byte_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of `tensor` as uint8 [num_bytes], without a copy where it is contiguous (numpy has no bfloat16)."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def byte_array(tensor: torch.Tensor) -> ByteArray:
    """The memory of a contiguous CPU tensor; writing to it writes to the tensor."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return byte_tensor(tensor).numpy()


def copy_plainly(source: ByteArray, target: ByteArray) -> None:
    np.copyto(target, source)


def copy_bytes(
    source: ByteArray,
    target: ByteArray,
    has_checksum: bool,
    copy: Callable[[ByteArray, ByteArray], None] = copy_plainly,
) -> int | None:
    """Copy bytes between arrays of one length; returns the crc32 of what then stands in `target`, if wanted.

    Block by block then, so that the checksum reads from the processor's cache; without one it is up to `copy`.
    """
    if not has_checksum:
        copy(source, target)
        return None
    crc32 = 0
    for start in range(0, len(source), COPY_BLOCK_BYTES):
        block = slice(start, start + COPY_BLOCK_BYTES)
        np.copyto(target[block], source[block])
        crc32 = crc32_of_bytes(target[block].data, crc32)
    return crc32


async def run_copy(num_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function`, which moves `num_bytes`, in a thread (or here when that is little).

    A cancelled caller waits for the thread first: only then may it give up the memory that is being copied.
    """
    if num_bytes < INLINE_COPY_BYTES:
        return function(*args, **kwargs)
    # Handed over at once; `asyncio.to_thread` would wait for the loop's next turn.
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue
        if not work.cancelled():
            work.exception()  # Taken, so that it is not reported as lost.
        raise
