"""GlooBackend: a link between two CPUs, over TCP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor


class GlooBackend:
    """An unregistered process group of two. What waits for a live peer ends by its timeout alone."""

    def __init__(self, own_host: str) -> None:
        self._own_host = own_host
        self._group: Any = None
        self._peer = 0

    def open(self, store: Any, rank: int, timeout_s: float) -> None:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=timeout_s)
        # By address: a machine's own name need not resolve.
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=self._own_host)]
        self._peer = 1 - rank
        self._group = dist.ProcessGroupGloo(store, rank, 2, options)

    def send(self, tensor: Tensor) -> _GlooWork:
        return _GlooWork(self._running().send([tensor], self._peer, 0))

    def recv(self, tensor: Tensor) -> _GlooWork:
        return _GlooWork(self._running().recv([tensor], self._peer, 0))

    def abort(self) -> None:
        self._group = None

    def close(self) -> None:
        self._group = None

    def _running(self) -> Any:
        group = self._group
        if group is None:
            raise RuntimeError("the link was closed")
        return group


class _GlooWork:
    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self, timeout_s: float) -> None:
        self._work.wait(timedelta(seconds=timeout_s))
