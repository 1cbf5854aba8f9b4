"""Waiting items become packed batches for the engine."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from encoder_service.engines import VisionEngine
from triptych.errors import InternalError, TriptychError, Unavailable
from triptych.models.qwen2_5_vl.grid import Grid


@dataclass(eq=False)
class WaitingItem:
    """Patches [num_patches, patch_dim] of one item, and who waits for their embedding."""

    patches: Tensor
    grid: Grid
    arrived: float
    result: "asyncio.Future[BatchedEmbedding]"

    @property
    def num_patches(self) -> int:
        return self.grid.num_patches


@dataclass(frozen=True)
class BatchedEmbedding:
    """One item's embedding [num_tokens, hidden]; the seconds it waited and its batch took; the items of that batch."""

    tensor: Tensor
    queue_s: float
    encode_s: float
    batch_items: int


def first_come(waiting: Sequence[WaitingItem], max_patches: int) -> list[WaitingItem]:
    """The policy: items in the order of their arrival until `max_patches` are full, but at least one."""
    batch = [waiting[0]]
    num_patches = waiting[0].num_patches
    for item in waiting[1:]:
        num_patches += item.num_patches
        if num_patches > max_patches:
            break
        batch.append(item)
    return batch


@dataclass
class BatchCounters:
    num_batches: int = 0
    encoded_items: int = 0
    encoded_patches: int = 0


class Batcher:
    """Feeds the engine on its one thread. `submit` and `run` live on the event loop, which never computes.

    Starts with `start`, ends with `close`; a batch that runs is never interrupted.
    """

    def __init__(
        self,
        engine: VisionEngine,
        max_batch_patches: int,
        batch_wait_s: float,
        choose: Callable[[Sequence[WaitingItem], int], list[WaitingItem]] = first_come,
    ) -> None:
        self.counters = BatchCounters()
        self._engine = engine
        self._max_batch_patches = max_batch_patches
        self._batch_wait_s = batch_wait_s
        self._choose = choose
        self._waiting: list[WaitingItem] = []
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder-engine")
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop_task = asyncio.create_task(self._run(), name="encoder-batcher")

    async def submit(self, patches: Tensor, grid: Grid) -> BatchedEmbedding:
        """Waits for the item's embedding. Cancelling takes the item out of the queue, if it still waits there."""
        if self._loop_task is None or self._loop_task.done():
            raise Unavailable("the encoder's batcher is not running")
        item = WaitingItem(patches, grid, time.monotonic(), asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._changed.set()
        try:
            return await item.result
        finally:
            if item in self._waiting:
                self._waiting.remove(item)

    async def close(self) -> None:
        """Fails what waits, lets a running batch end, and gives the thread back."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        for item in self._waiting:
            if not item.result.done():
                item.result.set_exception(Unavailable("the encoder is shutting down"))
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        while True:
            await self._wait_for_batch()
            # Everybody may have gone away meanwhile.
            if self._waiting:
                batch = self._choose(self._waiting, self._max_batch_patches)
                self._waiting = [item for item in self._waiting if item not in batch]
                await self._encode(batch)

    async def _wait_for_batch(self) -> None:
        """Until an item waits, and then until a batch is full or its first item has waited for `batch_wait_s`."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        deadline = self._waiting[0].arrived + self._batch_wait_s
        while 0 < sum(item.num_patches for item in self._waiting) < self._max_batch_patches:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), remaining_s)
            except TimeoutError:
                return

    async def _encode(self, batch: list[WaitingItem]) -> None:
        started = time.monotonic()
        patches, grids = [item.patches for item in batch], [item.grid for item in batch]
        try:
            tensors = await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: self._engine.encode(torch.cat(patches).to(self._engine.device), grids)
            )
        except asyncio.CancelledError:
            _fail(batch, Unavailable("the encoder is shutting down"))
            raise
        except Exception as error:
            _fail(batch, error if isinstance(error, TriptychError) else InternalError(f"encoding failed: {error!r}"))
            return
        encode_s = time.monotonic() - started
        self.counters.num_batches += 1
        self.counters.encoded_items += len(batch)
        self.counters.encoded_patches += sum(grid.num_patches for grid in grids)
        for item, tensor in zip(batch, tensors, strict=True):
            if not item.result.done():
                item.result.set_result(BatchedEmbedding(tensor, started - item.arrived, encode_s, len(batch)))


def _fail(batch: Sequence[WaitingItem], error: Exception) -> None:
    for item in batch:
        if not item.result.done():
            item.result.set_exception(error)
