"""Upload: all that a step brings to the device, in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.generic]
FieldSpec = tuple[tuple[int, ...], torch.dtype]

# The copy of one step may still be on its way while the next one is written.
_NUM_HOST_BUFFERS = 2
# Triton compiles pointers that are multiples of 16 apart from others.
_ALIGNMENT = 16
_TORCH_TYPES = {np.int32: torch.int32, np.int64: torch.int64, np.float32: torch.float32}


@dataclass(frozen=True)
class Fields:
    """Named arrays in the upload. host: one mapping for each host buffer; device: where they arrive."""

    host: tuple[Mapping[str, Array], ...]
    device: Mapping[str, Tensor]
    num_bytes: int


class Upload:
    """Pinned host buffers and the device buffer they are copied to. On a CPU both are the same memory.

    Used for one step after the other: `begin`, write the fields of `self.turn`, `send`. Belongs to one thread.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.device = device
        self.turn = 0
        self._device_buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        is_cuda = device.type == "cuda"
        self._host_buffers = [
            torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True) if is_cuda else self._device_buffer
            for _ in range(_NUM_HOST_BUFFERS)
        ]

    @property
    def num_bytes(self) -> int:
        return self._device_buffer.numel()

    def fields(self, specs: Mapping[str, FieldSpec], first_byte: int = 0) -> Fields:
        """Places the fields one after the other from `first_byte` on; the same specs get the same places."""
        offsets: dict[str, int] = {}
        end = first_byte
        for name, (shape, dtype) in specs.items():
            offsets[name] = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = offsets[name] + prod(shape) * dtype.itemsize
        assert end <= self.num_bytes, f"{end} bytes in an upload of {self.num_bytes}"
        views = [
            {name: _view(buffer, offsets[name], *spec) for name, spec in specs.items()}
            for buffer in (self._device_buffer, *self._host_buffers)
        ]
        host = tuple({name: view.numpy() for name, view in of_buffer.items()} for of_buffer in views[1:])
        return Fields(host, views[0], end)

    def begin(self) -> None:
        """Turns to the host buffer whose copy is the oldest."""
        self.turn = (self.turn + 1) % _NUM_HOST_BUFFERS

    def send(self, num_bytes: int) -> None:
        """Copies the first bytes to the device, in the order of its stream."""
        if self.device.type == "cuda":
            self._device_buffer[:num_bytes].copy_(self._host_buffers[self.turn][:num_bytes], non_blocking=True)


def array_specs(arrays: Mapping[str, Array]) -> dict[str, FieldSpec]:
    """The specs of fields that take the arrays as they are."""
    return {name: (array.shape, _TORCH_TYPES[array.dtype.type]) for name, array in arrays.items()}


def bytes_of(specs: Mapping[str, FieldSpec]) -> int:
    """An upload of so many bytes has room for the fields."""
    return sum(prod(shape) * dtype.itemsize + _ALIGNMENT for shape, dtype in specs.values())


def _view(buffer: Tensor, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return buffer[offset : offset + prod(shape) * dtype.itemsize].view(dtype).view(shape)
