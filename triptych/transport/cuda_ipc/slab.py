"""CudaSlab: GPU memory in which a producer lays tensors for consumers of its host."""

from __future__ import annotations

from torch import Tensor

from triptych.transport.cuda_ipc.driver import CudaDriver
from triptych.transport.extents import Extent, ExtentAllocator
from triptych.transport.lanes import CUDA_MEMORY_FIELD

# Smaller allocations share a block, whose handle would name more than the slab.
_SLAB_ALIGNMENT = 2 << 20
_EXTENT_ALIGNMENT = 512


class CudaSlab:
    """`extents` is bookkeeping for one thread (the event loop); `write` may run in another.

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
        self._is_closed = False

    def write(self, extent: Extent, data: Tensor) -> None:
        """Copies flat bytes on the slab's GPU to the start of `extent`."""
        assert self.extents.is_taken(extent) and data.nbytes <= extent.length
        self._driver.copy(self._address + extent.offset, data.data_ptr(), data.nbytes)

    def close(self) -> None:
        """Frees the memory; idempotent. What consumers have mapped goes when they unmap it."""
        if not self._is_closed:
            self._is_closed = True
            self._driver.free(self._address)
