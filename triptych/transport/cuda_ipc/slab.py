"""CudaSlab: GPU memory in which a producer lays tensors for consumers of its host.

A producer can't see who still reads: a consumer that was stopped, or whose connection broke, may copy long after its
piece was given to another tensor. So a number that no other tensor has stands before the bytes, and goes before
anything is laid over them. A consumer that finds it there after its copy has copied the right bytes.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from torch import Tensor

from triptych.transport.cuda_ipc.driver import CudaDriver
from triptych.transport.extents import Extent, ExtentAllocator
from triptych.transport.lanes import CUDA_MEMORY_FIELD

STAMP = struct.Struct("<Q")
# Padded, so that the bytes begin where copies are fastest.
STAMP_BYTES = 256
_NO_STAMP = 0
# Smaller allocations share a block, whose handle would name more than the slab.
_SLAB_ALIGNMENT = 2 << 20
_EXTENT_ALIGNMENT = 512


@dataclass(eq=False)
class CudaPiece:
    """A piece of a slab for one tensor. `stale`: where stamps of earlier tensors may stand in it."""

    extent: Extent
    stamp: int
    stale: tuple[int, ...]
    is_written: bool = False

    @property
    def offset(self) -> int:
        """Where in the slab the bytes begin."""
        return self.extent.offset + STAMP_BYTES


class CudaSlab:
    """`allocate` and `free` are bookkeeping for one thread (the event loop); `write` may run in another.

    Raises Overloaded where the GPU has not so much memory, Unavailable where it can't be shared.
    """

    def __init__(self, producer_id: str, num_bytes: int, driver: CudaDriver) -> None:
        num_bytes = -(-num_bytes // _SLAB_ALIGNMENT) * _SLAB_ALIGNMENT
        self.extents = ExtentAllocator(f"cuda-{producer_id}", num_bytes, _EXTENT_ALIGNMENT, CUDA_MEMORY_FIELD)
        self._driver = driver
        self._address = driver.allocate(num_bytes)
        try:
            self.handle = driver.export(self._address)
        except BaseException:
            driver.free(self._address)
            raise
        self._stamps = itertools.count(_NO_STAMP + 1)
        self._stale: set[int] = set()
        self._is_closed = False

    def allocate(self, num_bytes: int) -> CudaPiece:
        """For a tensor of `num_bytes`. Raises Overloaded when there is no room."""
        extent = self.extents.allocate(STAMP_BYTES + num_bytes)
        # Its own stamp takes the place of the one at its beginning.
        stale = tuple(offset for offset in self._stale if extent.offset < offset < extent.end)
        self._stale.difference_update(stale)
        return CudaPiece(extent, next(self._stamps), stale)

    def free(self, piece: CudaPiece) -> None:
        self._stale.add(piece.extent.offset)
        if not piece.is_written:
            self._stale.update(piece.stale)
        self.extents.free(piece.extent)

    def write(self, piece: CudaPiece, data: Tensor) -> None:
        """Copies flat bytes on the slab's GPU into `piece`, behind its stamp."""
        assert self.extents.is_taken(piece.extent) and STAMP_BYTES + data.nbytes <= piece.extent.length
        for offset in piece.stale:
            self._driver.write(self._address + offset, STAMP.pack(_NO_STAMP))
        self._driver.write(self._address + piece.extent.offset, STAMP.pack(piece.stamp))
        self._driver.copy(self._address + piece.offset, data.data_ptr(), data.nbytes)
        piece.is_written = True

    def close(self) -> None:
        """Frees the memory; idempotent. What consumers have mapped goes when they unmap it."""
        if not self._is_closed:
            self._is_closed = True
            self._driver.free(self._address)
