"""Memory whose address stays while its contents come and go: what captured CUDA graphs read may be given back."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class FixedMemory(Protocol):
    """`slab`, uint8, is there from the start and after `restore`; it must not be touched between `release` and that."""

    slab: Tensor

    def release(self) -> None:
        """Gives the memory back; the address stays taken. Idempotent."""
        ...

    def restore(self) -> None:
        """Memory at the same address, with anything in it. Idempotent. Raises Unavailable when there is too little."""
        ...

    def close(self) -> None:
        """Gives back the address too. Nobody may hold a part of `slab` any more."""
        ...


class HostMemory:
    """On a CPU, where nothing depends on an address: views of the slab follow its storage."""

    def __init__(self, num_bytes: int) -> None:
        self.slab = torch.empty(num_bytes, dtype=torch.uint8)
        self._num_bytes = num_bytes

    def release(self) -> None:
        self.slab.untyped_storage().resize_(0)

    def restore(self) -> None:
        self.slab.untyped_storage().resize_(self._num_bytes)

    def close(self) -> None:
        self.release()


def fixed_memory(num_bytes: int, device: torch.device) -> FixedMemory:
    """On `device`."""
    if device.type != "cuda":
        return HostMemory(num_bytes)
    from router.control.roles.mapped_memory import MappedMemory

    return MappedMemory(num_bytes, device)
