"""NcclBackend: a link between two GPUs, over NVLink, PCIe or the network, as NCCL finds it.

A communicator of two ranks in a process group that is not registered. torch's own watchdog ends a process whose peer
is late; it is switched off here, and deadlines and aborts are the link's.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_POLL_S = 20e-6


def has_nccl(device: torch.device) -> bool:
    """Whether links from or to `device` can go over NCCL."""
    return device.type == "cuda" and dist.is_available() and dist.is_nccl_available()


class NcclBackend:
    """`max_ctas` bounds the channels, and with them memory and speed (reference: 8 are 71-122 MB and 258 GB/s)."""

    def __init__(self, own_host: str, device: torch.device, max_ctas: int) -> None:
        self._device = device
        self._max_ctas = max_ctas
        self._group: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._peer = 0

    def open(self, store: Any, rank: int, timeout_s: float) -> None:
        # Read by each process group as it is made: no tearing down of the process for a late peer.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=timeout_s)
        options.config.max_ctas = self._max_ctas
        self._peer = 1 - rank
        with torch.cuda.device(self._device):
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._group = dist.ProcessGroupNCCL(store, rank, 2, options)
            # The communicator is made by the first transfer: off the path of the requests.
            probe = torch.zeros(1, dtype=torch.uint8, device=self._device)
            torch.cuda.current_stream(self._device).synchronize()
            (self.send(probe) if rank == 0 else self.recv(probe)).wait(timeout_s)

    def send(self, tensor: Tensor) -> _NcclWork:
        return self._post("send", tensor)

    def recv(self, tensor: Tensor) -> _NcclWork:
        return self._post("recv", tensor)

    def abort(self) -> None:
        """Ends the kernels that wait for the peer, too; takes about half a second."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def close(self) -> None:
        self.abort()

    def _post(self, name: str, tensor: Tensor) -> _NcclWork:
        group, stream = self._group, self._stream
        if group is None or stream is None:
            raise RuntimeError("the link was closed")
        # The group's own stream waits for the current one: on the default stream it would wait for the model.
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            work = getattr(group, name)([tensor], self._peer, 0)
            work.wait()  # Only makes the stream wait.
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)  # type: ignore[no-untyped-call]
        return _NcclWork(self, event)

    @property
    def is_aborted(self) -> bool:
        return self._group is None


class _NcclWork:
    def __init__(self, backend: NcclBackend, event: torch.cuda.Event) -> None:
        self._backend = backend
        self._event = event

    def wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._event.query():  # type: ignore[no-untyped-call]
            if time.monotonic() >= deadline:
                raise RuntimeError(f"the peer did not come within {timeout_s:g} s")
            time.sleep(_POLL_S)
        if self._backend.is_aborted:
            raise RuntimeError("the link was aborted")
