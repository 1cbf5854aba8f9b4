"""DeviceExports: copies of KV pages that wait for other actors in the GPU's own memory, within a bound."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor


class DeviceExports:
    """Makes the copies on a stream of its own, and counts them until they are dropped, by whom- and however that is.

    max_bytes: what may lie there at one time. Used by the engine's thread; copies may be dropped on any.
    """

    def __init__(self, max_bytes: int, device: torch.device) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        # The garbage collector may drop copies on the thread that holds it.
        self._lock = threading.RLock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def make(self, num_bytes: int, copy: Callable[[], Tensor]) -> Tensor | None:
        """What `copy` makes of final data, complete when this returns; None where there is no room for `num_bytes`."""
        with self._lock:
            if self._num_bytes + num_bytes > self._max_bytes:
                return None
            self._num_bytes += num_bytes
        try:
            tensor = self._run(copy)
        except BaseException:
            self._drop(num_bytes)
            raise
        weakref.finalize(tensor, self._drop, num_bytes).atexit = False
        return tensor

    def _run(self, copy: Callable[[], Tensor]) -> Tensor:
        if self._stream is None:
            return copy()
        with torch.cuda.stream(self._stream):
            tensor = copy()
            # Lanes read it on streams of their own, and wait for them before they let go of it.
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        done.synchronize()
        return tensor

    def _drop(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes -= num_bytes
