"""A CUDA driver whose memory is the host's: addresses are real, a handle works until its owner frees the memory."""

from __future__ import annotations

import ctypes
import uuid
from dataclasses import dataclass, field

from triptych.errors import Overloaded, Unavailable


@dataclass
class FakeGpu:
    """What the drivers of one GPU have in common. `num_bytes`: how much memory it has."""

    num_bytes: int
    allocated: dict[int, ctypes.Array[ctypes.c_char]] = field(default_factory=dict)
    exported: dict[bytes, int] = field(default_factory=dict)
    mapped: dict[int, int] = field(default_factory=dict)
    num_maps: int = 0

    @property
    def used_bytes(self) -> int:
        return sum(len(memory) for memory in self.allocated.values())


class FakeCudaDriver:
    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def allocate(self, num_bytes: int) -> int:
        if self._gpu.used_bytes + num_bytes > self._gpu.num_bytes:
            raise Overloaded("CUDA_ERROR_OUT_OF_MEMORY")
        memory = ctypes.create_string_buffer(num_bytes)
        address = ctypes.addressof(memory)
        self._gpu.allocated[address] = memory
        return address

    def free(self, address: int) -> None:
        del self._gpu.allocated[address]

    def export(self, address: int) -> bytes:
        handle = uuid.uuid4().bytes * 4
        self._gpu.exported[handle] = address
        return handle

    def map(self, handle: bytes) -> int:
        address = self._gpu.exported.get(handle, 0)
        if address not in self._gpu.allocated:
            raise Unavailable("CUDA_ERROR_INVALID_HANDLE")
        assert address not in self._gpu.mapped, "a handle is opened once in a process"
        self._gpu.mapped[address] = 1
        self._gpu.num_maps += 1
        return address

    def unmap(self, address: int) -> None:
        del self._gpu.mapped[address]

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        ctypes.memmove(target, source, num_bytes)

    def write(self, target: int, data: bytes) -> None:
        ctypes.memmove(target, data, len(data))

    def read(self, source: int, num_bytes: int) -> bytes:
        return ctypes.string_at(source, num_bytes)
