"""Embeddings by content: the same picture is encoded once."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from encoder_service.recently_used import RecentlyUsed
from triptych.models.qwen2_5_vl.grid import Grid

logger = logging.getLogger(__name__)

# The grid is part of the key, so that a ticket with a wrong one is never answered from the cache.
ContentId = tuple[str, Grid]

# Part of the device's bytes that what is on its way to the host may hold.
_SPILL_SHARE = 8


class TensorCopies(Protocol):
    """Blocking copies between the device and the host, called on the cache's own thread."""

    def to_host(self, tensor: Tensor) -> Tensor: ...

    def to_device(self, tensor: Tensor, device: torch.device) -> Tensor: ...


@dataclass
class CacheCounters:
    """Since the start. Dropped embeddings fell out of a tier and went nowhere."""

    device_hits: int = 0
    host_hits: int = 0
    spilled: int = 0
    dropped: int = 0


class EmbeddingCache:
    """Least recently used embeddings, at most `device_bytes` of them on `device`; what falls out there goes to pinned
    host memory, at most `host_bytes`, and comes back when it is asked for. 0 turns a tier off. Lives on the event loop
    and copies on a thread; a CPU has one tier.

    Embeddings under a lease that fall out live on with the lease; their bytes count here no more. What is on its way
    to the host counts until it has arrived: an eighth of `device_bytes` is set aside for it, and what does not fit
    into that is dropped.
    """

    def __init__(
        self, device_bytes: int, host_bytes: int = 0, copies: TensorCopies | None = None, *, device: torch.device
    ) -> None:
        self.counters = CacheCounters()
        self.spilling_bytes = 0
        has_host = copies is not None and host_bytes > 0 and device_bytes > 0
        self._max_spilling_bytes = device_bytes // _SPILL_SHARE if has_host else 0
        self.on_device = RecentlyUsed[ContentId](device_bytes - self._max_spilling_bytes)
        self.on_host = RecentlyUsed[ContentId](host_bytes if has_host else 0, pinned_block_bytes)
        self._copies = copies
        self._device = device
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder-cache")

    @property
    def device_bytes(self) -> int:
        """Held on the device now."""
        return self.on_device.num_bytes + self.spilling_bytes

    def __contains__(self, content: ContentId) -> bool:
        return content in self.on_device or content in self.on_host

    def get(self, content: ContentId) -> Tensor | None:
        """The embedding if it is on the device, now the most recently used one there, or None."""
        tensor = self.on_device.get(content)
        self.counters.device_hits += tensor is not None
        return tensor

    async def promote(self, content: ContentId) -> Tensor:
        """Brings an embedding of the host tier back to the device and answers it there."""
        source = self.on_host.get(content)
        assert source is not None and self._copies is not None
        self.counters.host_hits += 1
        loop = asyncio.get_running_loop()
        tensor = await loop.run_in_executor(self._thread, self._copies.to_device, source, self._device)
        # The host's copy stays: should it fall out again, it need not be moved.
        self._keep_on_device(content, tensor)
        return tensor

    def put(self, content: ContentId, tensor: Tensor) -> None:
        """Keeps `tensor`, which is final, owns its memory and lies on the device."""
        self.on_host.remove(content)
        self._keep_on_device(content, tensor)

    async def wait_spilled(self) -> None:
        """Until nothing is on its way to the host."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Lets go of all tensors and of the thread. Idempotent."""
        await self.wait_spilled()
        await asyncio.to_thread(self._thread.shutdown)
        self.on_device.clear()
        self.on_host.clear()

    def _keep_on_device(self, content: ContentId, tensor: Tensor) -> None:
        for fallen, old in self.on_device.put(content, tensor):
            self._let_fall(fallen, old)

    def _let_fall(self, content: ContentId, tensor: Tensor) -> None:
        if content in self.on_host:
            self.on_host.get(content)  # as recently used as it was on the device
            return
        fits = self.spilling_bytes + tensor.nbytes <= self._max_spilling_bytes and self.on_host.can_hold(tensor)
        if not fits:
            self.counters.dropped += 1
            return
        self.spilling_bytes += tensor.nbytes
        task = asyncio.get_running_loop().create_task(self._spill(content, tensor), name="encoder-cache-spill")
        self._tasks.add(task)
        task.add_done_callback(partial(self._spilled, tensor.nbytes))

    async def _spill(self, content: ContentId, tensor: Tensor) -> None:
        assert self._copies is not None
        try:
            copy = await asyncio.get_running_loop().run_in_executor(self._thread, self._copies.to_host, tensor)
        except Exception:
            # The picture is encoded again then.
            logger.exception("an embedding of %d bytes could not be moved to the host", tensor.nbytes)
            self.counters.dropped += 1
            return
        self.counters.spilled += 1
        self.counters.dropped += len(self.on_host.put(content, copy))

    def _spilled(self, num_bytes: int, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self.spilling_bytes -= num_bytes


def pinned_block_bytes(num_bytes: int) -> int:
    """What torch's allocator of pinned memory takes for `num_bytes`: the next power of two."""
    return 1 << max(num_bytes - 1, 0).bit_length()
