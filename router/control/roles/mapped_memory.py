"""MappedMemory: FixedMemory of a GPU, by the virtual memory calls of the CUDA driver."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from triptych.errors import Unavailable

_PINNED = 1  # CU_MEM_ALLOCATION_TYPE_PINNED: plain device memory
_ON_DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_READ_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_MINIMUM = 0  # CU_MEM_ALLOC_GRANULARITY_MINIMUM


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", _Flags),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class MappedMemory:
    """In the context that torch uses. `release` and `restore` wait for all that the device was asked to do.

    Raises Unavailable when the driver refuses.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", self._index)
        self._library = ctypes.CDLL("libcuda.so.1")
        # Makes torch's context the one that is current on this thread.
        torch.cuda.synchronize(self._device)
        self._properties = _Properties(type=_PINNED, location=_Location(_ON_DEVICE, self._index))
        granularity = ctypes.c_size_t()
        self._call(
            "cuMemGetAllocationGranularity",
            ctypes.byref(granularity),
            ctypes.byref(self._properties),
            ctypes.c_int(_MINIMUM),
        )
        self._size = -(-num_bytes // granularity.value) * granularity.value
        self._address = ctypes.c_uint64()
        self._call(
            "cuMemAddressReserve",
            ctypes.byref(self._address),
            ctypes.c_size_t(self._size),
            ctypes.c_size_t(0),
            ctypes.c_uint64(0),
            ctypes.c_ulonglong(0),
        )
        self._handle: ctypes.c_ulonglong | None = None
        self.restore()
        self.slab = self._tensor(num_bytes)

    def release(self) -> None:
        if self._handle is None:
            return
        torch.cuda.synchronize(self._device)
        self._call("cuMemUnmap", self._address, ctypes.c_size_t(self._size))
        self._call("cuMemRelease", self._handle)
        self._handle = None

    def restore(self) -> None:
        if self._handle is not None:
            return
        torch.cuda.synchronize(self._device)
        handle = ctypes.c_ulonglong()
        self._call(
            "cuMemCreate",
            ctypes.byref(handle),
            ctypes.c_size_t(self._size),
            ctypes.byref(self._properties),
            ctypes.c_ulonglong(0),
        )
        self._call(
            "cuMemMap", self._address, ctypes.c_size_t(self._size), ctypes.c_size_t(0), handle, ctypes.c_ulonglong(0)
        )
        access = _Access(_Location(_ON_DEVICE, self._index), _READ_WRITE)
        self._call(
            "cuMemSetAccess", self._address, ctypes.c_size_t(self._size), ctypes.byref(access), ctypes.c_size_t(1)
        )
        self._handle = handle

    def close(self) -> None:
        self.release()
        if self._address.value:
            self._call("cuMemAddressFree", self._address, ctypes.c_size_t(self._size))
            self._address = ctypes.c_uint64()

    def _tensor(self, num_bytes: int) -> Tensor:
        """The memory as torch sees it, through the protocol by which libraries hand over device arrays."""
        interface = {"shape": (num_bytes,), "typestr": "|u1", "data": (self._address.value, False), "version": 3}
        array = type("DeviceArray", (), {"__cuda_array_interface__": interface})()
        return torch.as_tensor(array, device=self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        code: int = getattr(self._library, name)(*arguments)
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
        raise Unavailable(
            f"{name} of {self._size if hasattr(self, '_size') else 0} bytes: "
            f"{(text.value or b'unknown').decode()} ({code})"
        )
