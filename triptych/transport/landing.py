"""Memory for a tensor that is about to arrive."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

from triptych.transport.ticket import TensorSpec

# The size of a huge page on the machines that this runs on; smaller tensors fit in none.
_HUGE_PAGE_BYTES = 2 << 20


def landing_memory(spec: TensorSpec) -> torch.Tensor:
    """An empty CPU tensor, in huge pages where it is large: to fault in ordinary ones takes as long as to fill them."""
    if spec.num_bytes < _HUGE_PAGE_BYTES:
        return torch.empty(spec.shape, dtype=spec.dtype)
    memory = mmap.mmap(-1, spec.num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # A kernel without them.
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=spec.dtype).view(spec.shape)
