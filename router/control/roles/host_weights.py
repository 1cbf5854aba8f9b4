"""HostWeights: one half of a model, kept in pinned host memory and brought to the device while it is used."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from router.control.roles.fixed_memory import FixedMemory, fixed_memory

# Tensors begin at multiples of this: more than any kernel asks for.
_ALIGNMENT = 512


class HostWeights:
    """`hold` once, then `release` and `restore` in turn, each by a thread that may wait; `close` at the end.

    The tensors stay the objects they are and keep their address, so that graphs captured with them stay valid.
    """

    def __init__(self) -> None:
        self._memory: FixedMemory | None = None
        self._host = torch.empty(0, dtype=torch.uint8)
        self.is_on_device = False

    @property
    def num_bytes(self) -> int:
        return self._host.numel()

    def hold(self, weights: Sequence[Tensor]) -> None:
        """Gives the tensors, all on one device, memory of this object's own, with the same values."""
        assert weights and self._memory is None, "weights are held once"
        device = weights[0].device
        offsets, num_bytes = [], 0
        for tensor in weights:
            offsets.append(num_bytes)
            num_bytes += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._memory = memory = fixed_memory(num_bytes, device)
        with torch.inference_mode():
            for tensor, offset in zip(weights, offsets, strict=True):
                place = memory.slab[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                place.copy_(tensor)
                tensor.data = place
            self._host.copy_(memory.slab)
        self.is_on_device = True
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def release(self) -> None:
        """Gives the device's memory back; nothing may compute with the weights until `restore`. Idempotent."""
        assert self._memory is not None
        self._memory.release()
        self.is_on_device = False

    def restore(self) -> float:
        """The weights are on the device again; the seconds that it took. Idempotent."""
        assert self._memory is not None
        begun_s = time.monotonic()
        if not self.is_on_device:
            self._memory.restore()
            with torch.inference_mode():
                self._memory.slab.copy_(self._host, non_blocking=True)
            if self._memory.slab.device.type == "cuda":
                torch.cuda.synchronize(self._memory.slab.device)
            self.is_on_device = True
        return time.monotonic() - begun_s
