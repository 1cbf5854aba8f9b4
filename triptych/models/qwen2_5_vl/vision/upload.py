"""Host arrays to the device in one copy that nobody waits for."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Triton compiles pointers that are multiples of 16 apart from others.
_ALIGNMENT = 16
_TORCH_TYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


def upload(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """Arrays of int32, int64 or float32 as tensors on `device`.

    A GPU gets them in one copy from pinned memory, in the order of the current stream; a copy from ordinary memory
    would wait for all work before it. On a CPU the tensors share the memory of the arrays.
    """
    if device.type != "cuda":
        return [torch.from_numpy(array).to(device) for array in arrays]
    offsets, end = [], 0
    for array in arrays:
        offsets.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    # The allocator of pinned memory gives it to somebody else only when the copy is done.
    staging = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    for array, offset in zip(arrays, offsets, strict=True):
        _view(staging, offset, array).numpy()[...] = array
    arrived = staging.to(device, non_blocking=True)
    return [_view(arrived, offset, array) for array, offset in zip(arrays, offsets, strict=True)]


def upload_into(target: Tensor, array: NDArray[np.generic]) -> None:
    """The same for one array that replaces what `target`, on a GPU, holds."""
    staging = torch.empty(array.shape, dtype=target.dtype, pin_memory=True)
    staging.numpy()[...] = array
    target.copy_(staging, non_blocking=True)


def _view(buffer: Tensor, offset: int, array: NDArray[np.generic]) -> Tensor:
    num_bytes = prod(array.shape) * array.itemsize
    return buffer[offset : offset + num_bytes].view(_TORCH_TYPES[array.dtype.name]).view(array.shape)
