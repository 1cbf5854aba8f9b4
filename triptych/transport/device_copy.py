"""Copies between a GPU's memory and the host's, beside whatever computes on the GPU."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from triptych.transport.checksum import crc32_of_bytes
from triptych.transport.copying import byte_array


class DeviceCopies:
    """Copies on a stream of its own, through pinned memory, and waits for nothing but the copy itself.

    Both calls block their thread until the copy is there, and let other threads run meanwhile. Sources must be final:
    no other stream is waited for. Without a GPU in play they are plain copies.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def to_host(self, tensor: Tensor) -> Tensor:
        """A contiguous copy in host memory, pinned if it came from a GPU."""
        if tensor.device.type != "cuda":
            return tensor.detach().clone(memory_format=torch.contiguous_format)
        with torch.cuda.device(tensor.device), torch.cuda.stream(self._stream(tensor.device)):
            source = tensor.detach().contiguous()
            target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            target.copy_(source, non_blocking=True)
            self._wait()
        return target

    def to_device(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A contiguous copy on `device`."""
        if device.type != "cuda":
            return tensor.detach().clone(memory_format=torch.contiguous_format)
        with torch.cuda.device(device), torch.cuda.stream(self._stream(device)):
            target = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            target.copy_(tensor, non_blocking=True)
            # Readers are on the default stream: memory that they may still read is not handed out again.
            target.record_stream(torch.cuda.default_stream(device))
            self._wait()
        return target

    def contiguous_on(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor itself where it is contiguous and on `device`, else a copy there."""
        if tensor.device == device and tensor.is_contiguous():
            return tensor.detach()
        if device.type != "cuda":
            return tensor.detach().contiguous() if tensor.device.type == "cpu" else self.to_host(tensor)
        return self.to_device(tensor, device)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory that any stream may write at once: what the default stream has yet to do does not touch it."""
        if device.type != "cuda":
            return torch.empty(shape, dtype=dtype, device=device)
        with torch.cuda.device(device), torch.cuda.stream(self._stream(device)):
            target = torch.empty(shape, dtype=dtype, device=device)
            target.record_stream(torch.cuda.default_stream(device))
            return target

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        with self._lock:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            return self._streams[device]

    @staticmethod
    def _wait() -> None:
        """For this thread's copy alone: other threads may have put theirs on the stream behind it."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        event.synchronize()  # type: ignore[no-untyped-call]


def crc32_of(tensor: Tensor, copies: DeviceCopies) -> int:
    """Of the bytes of a contiguous tensor, wherever they are."""
    on_host = tensor if tensor.device.type == "cpu" else copies.to_host(tensor)
    return crc32_of_bytes(byte_array(on_host).data)
