"""What moves the bytes of a link, behind a Protocol: `GlooBackend` between CPUs, `NcclBackend` between GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

PRODUCER_RANK = 0
CONSUMER_RANK = 1


@dataclass(frozen=True)
class LinkKey:
    """Identity of a link. An epoch is never used twice: what is left of a broken link can't reach the next one."""

    lane: str
    producer_id: str
    consumer_id: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.lane} {self.producer_id} -> {self.consumer_id} #{self.epoch}"


class LinkWork(Protocol):
    """A posted send or receive."""

    def wait(self, timeout_s: float) -> None:
        """Blocks until it is done. Raises RuntimeError when the peer is gone or the time is over."""
        ...


class LinkBackend(Protocol):
    """One end of one link. `send` and `recv` come from one thread, `abort` from any.

    Tensors are flat uint8, contiguous, on the backend's device, and stay alive until their work has ended.
    """

    def open(self, store: Any, rank: int, timeout_s: float) -> None:
        """Meets the other end at `store` (a c10d store of this link's own); blocks. Raises RuntimeError."""
        ...

    def send(self, tensor: Tensor) -> LinkWork:
        """Posts a send, without waiting for the peer."""
        ...

    def recv(self, tensor: Tensor) -> LinkWork:
        """Posts a receive, without waiting for the peer."""
        ...

    def abort(self) -> None:
        """Ends what is posted as soon as the backend can; nothing works afterwards. Idempotent."""
        ...

    def close(self) -> None:
        """Lets go of memory and connections, when nothing is posted any more. Idempotent."""
        ...


# `own_host`: the address at which the other end reaches this one.
MakeBackend = Callable[[str], LinkBackend]
