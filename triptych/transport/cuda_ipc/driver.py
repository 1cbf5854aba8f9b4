"""The few calls of the CUDA driver that share memory between processes, behind a Protocol."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from triptych.errors import Overloaded, Unavailable
from triptych.transport.lanes import CUDA_MEMORY_FIELD

HANDLE_BYTES = 64
_OUT_OF_MEMORY = 2
_NON_BLOCKING_STREAM = 1
_LAZY_PEER_ACCESS = 1


class CudaDriver(Protocol):
    """Addresses are those of device memory. Every call may come from any thread, and blocks it until it is done."""

    def allocate(self, num_bytes: int) -> int:
        """Memory that can be shared. Raises Overloaded when there is not so much."""
        ...

    def free(self, address: int) -> None: ...

    def export(self, address: int) -> bytes:
        """The handle (64 bytes) by which other processes map memory from `allocate`. Raises Unavailable."""
        ...

    def map(self, handle: bytes) -> int:
        """Map the memory of another process. Raises Unavailable when it is gone or can't be reached."""
        ...

    def unmap(self, address: int) -> None: ...

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Beside whatever else the GPU does, on a stream of its own. Raises Unavailable."""
        ...

    def write(self, target: int, data: bytes) -> None:
        """A few bytes of the host into device memory, as `copy` does."""
        ...

    def read(self, source: int, num_bytes: int) -> bytes:
        """A few bytes of device memory, as `copy` does."""
        ...


class _Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_ubyte * HANDLE_BYTES),)


class LibCuda:
    """libcuda.so.1 by ctypes, in the primary context of GPU `index`, which torch uses too."""

    def __init__(self, index: int) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        device = ctypes.c_int()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        with self._current():
            self._call("cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(_NON_BLOCKING_STREAM))

    def allocate(self, num_bytes: int) -> int:
        address = ctypes.c_uint64()
        with self._current():
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return address.value

    def free(self, address: int) -> None:
        with self._current():
            self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def export(self, address: int) -> bytes:
        handle = _Handle()
        with self._current():
            self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle.bytes)

    def map(self, handle: bytes) -> int:
        address = ctypes.c_uint64()
        with self._current():
            self._call(
                "cuIpcOpenMemHandle_v2",
                ctypes.byref(address),
                _Handle.from_buffer_copy(handle),
                ctypes.c_uint(_LAZY_PEER_ACCESS),
            )
        return address.value

    def unmap(self, address: int) -> None:
        with self._current():
            self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        with self._current():
            self._call(
                "cuMemcpyDtoDAsync_v2",
                ctypes.c_uint64(target),
                ctypes.c_uint64(source),
                ctypes.c_size_t(num_bytes),
                self._stream,
            )
            self._call("cuStreamSynchronize", self._stream)

    def write(self, target: int, data: bytes) -> None:
        with self._current():
            self._call(
                "cuMemcpyHtoDAsync_v2",
                ctypes.c_uint64(target),
                ctypes.c_char_p(data),
                ctypes.c_size_t(len(data)),
                self._stream,
            )
            self._call("cuStreamSynchronize", self._stream)

    def read(self, source: int, num_bytes: int) -> bytes:
        target = ctypes.create_string_buffer(num_bytes)
        with self._current():
            self._call(
                "cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(source), ctypes.c_size_t(num_bytes), self._stream
            )
            self._call("cuStreamSynchronize", self._stream)
        return target.raw

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Makes the context this thread's own for the block."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        code: int = getattr(self._library, name)(*arguments)
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
        message = f"{name}: {(text.value or b'unknown').decode()} ({code})"
        if code == _OUT_OF_MEMORY:
            raise Overloaded(f"{message}; {CUDA_MEMORY_FIELD} sizes the slab", field=CUDA_MEMORY_FIELD)
        raise Unavailable(f"CUDA memory can't be shared: {message}")


def load_driver(index: int) -> LibCuda | None:
    """None without a CUDA driver."""
    try:
        return LibCuda(index)
    except (OSError, Unavailable):
        return None
