"""TorchCollectives: what the ranks of a group do together, over NCCL on GPUs and over Gloo on CPUs."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from triptych.errors import ConfigurationError, Unavailable

LEADER = 0
# The public module leaves some of the options out. None of it has types.
_dist: Any = c10d


class TorchCollectives:
    """A process group of its own: torch's default group, of which a process has but one, is left alone.

    All ranks call the same operations in the same order, one thread at a time. On a GPU they are enqueued on the
    current stream, and may be captured. Raises Unavailable when another rank is gone.
    """

    def __init__(self, backend: Any, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self._backend = backend

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        rank: int,
        size: int,
        device: torch.device,
        timeout_s: float,
        *,
        own_host: str,
        listener: socket.socket | None = None,
    ) -> TorchCollectives:
        """Meets the other ranks at a store on `host`:`port`, which the leader serves from `listener`; blocks until all
        are there. `own_host` is the address at which they reach this one."""
        timeout = timedelta(seconds=timeout_s)
        file = None if listener is None else listener.detach()
        try:
            store = _dist.TCPStore(
                host, port, size, file is not None, timeout, wait_for_workers=False, master_listen_fd=file
            )
            # Keys of the backend, apart from those of the store itself.
            store = _dist.PrefixStore("ranks", store)
            if device.type == "cuda":
                backend = _nccl(store, rank, size, timeout)
            else:
                backend = _gloo(store, rank, size, timeout, own_host)
        except RuntimeError as error:
            raise Unavailable(f"rank {rank} could not meet the other {size - 1} at {host}:{port}: {error}") from error
        return cls(backend, rank, size, device)

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces the tensor by its sum over the ranks, the same bits on each."""
        options = _in_order(_dist.AllreduceOptions())
        self._run("allreduce", [tensor], options)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[size, *tensor.shape]: the tensor of every rank."""
        gathered = tensor.new_empty((self.size, *tensor.shape))
        options = _in_order(_dist.AllgatherOptions())
        self._run("_allgather_base", gathered.flatten(), tensor.contiguous().flatten(), options)
        return gathered

    def min_of(self, number: int) -> int:
        """The smallest of the ranks' numbers; waits for all of them."""
        tensor = torch.tensor([number], dtype=torch.int64, device=self.device)
        return int(self.all_gather(tensor).min())

    def broadcast(self, tensor: Tensor) -> None:
        """The leader's values to everybody's tensor."""
        options = _in_order(_dist.BroadcastOptions())
        self._run("broadcast", [_bytes(tensor)], options)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """On the leader the tensor of every rank, all of one shape; elsewhere nothing."""
        options = _in_order(_dist.GatherOptions())
        parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == LEADER else []
        self._run("gather", [[_bytes(part) for part in parts]] if parts else [], [_bytes(tensor)], options)
        return parts

    def scatter(self, out: Tensor, parts: Sequence[Tensor] = ()) -> None:
        """Fills `out` on every rank with its part; the leader brings them, all of the shape of `out`."""
        options = _in_order(_dist.ScatterOptions())
        self._run("scatter", [_bytes(out)], [[_bytes(part) for part in parts]] if parts else [], options)

    def abort(self) -> None:
        """From any thread: ends what a GPU is at; nothing works afterwards. What waits in Gloo goes on to wait, until
        the other side closes or dies."""
        backend = self._backend
        if backend is not None and self.device.type == "cuda":
            backend.abort()

    def close(self) -> None:
        """By the thread that used it, or after that: the other ranks notice."""
        self.abort()
        self._backend = None

    def _run(self, name: str, *arguments: Any) -> None:
        if self._backend is None:
            raise Unavailable(f"rank {self.rank} has left the group")
        try:
            work = getattr(self._backend, name)(*arguments)
            if work is not None:
                work.wait()
        except torch.AcceleratorError:
            raise  # The device is lost, not a rank.
        except RuntimeError as error:
            raise Unavailable(f"rank {self.rank} lost the other ranks: {str(error)[:300]}") from error


def _in_order(options: Any) -> Any:
    """On the current stream, like a kernel; the leader is the root, where there is one."""
    if hasattr(options, "asyncOp"):
        options.asyncOp = False
    if hasattr(options, "rootRank"):
        options.rootRank = LEADER
    return options


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory in a dtype that every backend moves."""
    assert tensor.is_contiguous()
    return tensor.flatten().view(torch.uint8)


def _gloo(store: Any, rank: int, size: int, timeout: timedelta, own_host: str) -> Any:
    options = _dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    # By address: a machine's own name need not resolve.
    options._devices = [_dist.ProcessGroupGloo.create_device(hostname=own_host)]
    return _dist.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    if not hasattr(_dist, "ProcessGroupNCCL"):
        raise ConfigurationError(
            "stages.*.tensor_parallel is above 1 on GPUs, but this torch was built without NCCL",
            field="tensor_parallel",
        )
    options = _dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return _dist.ProcessGroupNCCL(store, rank, size, options)
