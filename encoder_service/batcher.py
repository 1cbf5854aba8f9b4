"""Waiting items become batches: while one is in the tower, the next one is packed."""

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial

from encoder_service.batch_runner import BatchRunner, EngineLost
from encoder_service.batching import BatchPolicy, BatchRoom
from encoder_service.media.prepared import PreparedMedia
from encoder_service.memory import MemoryBudget, Reservation
from encoder_service.work import BatchedEmbedding, Turn, WaitingItem, WorkDeadline
from triptych.errors import DeadlineExceeded, InternalError, TriptychError, Unavailable

logger = logging.getLogger(__name__)

# One in the tower, one being packed or packed: what is chosen later can still be chosen better.
_BATCHES_IN_WORK = 2


@dataclass(frozen=True)
class BatchSettings:
    policy: BatchPolicy
    max_patches: int
    ageing_s: float
    wait_s: float


@dataclass
class BatchCounters:
    num_batches: int = 0
    encoded_items: int = 0
    encoded_patches: int = 0
    expired_items: int = 0


class Batcher:
    """Chooses, packs, encodes, answers. Lives on the event loop; computes on the runner's threads.

    Starts with `start`, ends with `close`; a batch that runs is never interrupted.
    """

    def __init__(self, runner: BatchRunner, memory: MemoryBudget, settings: BatchSettings) -> None:
        self.counters = BatchCounters()
        self._runner = runner
        self._memory = memory
        self._settings = settings
        self._room = BatchRoom(settings.max_patches, settings.ageing_s, memory.fits)
        self._waiting: list[WaitingItem] = []
        self._in_work: dict[asyncio.Task[None], list[WaitingItem]] = {}
        # Something came, went or became free.
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._is_closing = False
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def is_alive(self) -> bool:
        """Not once the loop has ended by itself."""
        return not self._ended.is_set()

    async def wait_ended(self) -> None:
        """Until the loop has ended by itself, because of a bug or a lost device."""
        await self._ended.wait()

    def start(self) -> None:
        self._loop_task = asyncio.create_task(self._run(), name="encoder-batcher")
        self._loop_task.add_done_callback(self._loop_ended)

    async def submit(self, prepared: PreparedMedia, turn: Turn, wanted_until: WorkDeadline) -> BatchedEmbedding:
        """Waits for the item's embedding. Cancelling takes the item out of the queue, if it still waits there.

        Raises DeadlineExceeded when its time runs out in the queue, RequestTooLarge when it can never be encoded,
        Unavailable when the batcher ends.
        """
        if self._loop_task is None or self._loop_task.done():
            raise Unavailable("the encoder's batcher is not running")
        result: asyncio.Future[BatchedEmbedding] = asyncio.get_running_loop().create_future()
        item = WaitingItem(prepared, time.monotonic(), turn, wanted_until, result)
        self._memory.check_alone(item.num_patches, item.media_bytes, prepared.field)
        self._waiting.append(item)
        self._changed.set()
        try:
            return await result
        finally:
            if item in self._waiting:
                self._waiting.remove(item)

    async def close(self) -> None:
        """Fails what waits or runs, lets the threads end, and gives them back. Idempotent."""
        self._is_closing = True
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._fail_all(Unavailable("the encoder is shutting down"))
        await asyncio.gather(*self._in_work, return_exceptions=True)
        await asyncio.to_thread(self._runner.close)

    async def _run(self) -> None:
        while True:
            batch = await self._next_batch()
            num_patches = sum(item.num_patches for item in batch)
            reservation = self._memory.reserve(num_patches, sum(item.media_bytes for item in batch))
            task = asyncio.create_task(self._process(batch, reservation), name="encoder-batch")
            self._in_work[task] = batch
            task.add_done_callback(partial(self._finished, reservation))

    async def _next_batch(self) -> list[WaitingItem]:
        """Until items wait and there is room, in work and in memory, for those that the policy chooses."""
        while True:
            self._changed.clear()
            self._drop_expired()
            wait_s = self._company_wait_s()
            if self._waiting and len(self._in_work) < _BATCHES_IN_WORK and wait_s <= 0:
                batch = self._choose()
                if batch:
                    self._waiting = [item for item in self._waiting if item not in batch]
                    return batch
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s if wait_s > 0 else None)
            except TimeoutError:
                continue

    def _company_wait_s(self) -> float:
        """How much longer the first item waits for others, as long as the batch is not full."""
        if not self._waiting or sum(item.num_patches for item in self._waiting) >= self._settings.max_patches:
            return 0.0
        return self._waiting[0].prepared_at + self._settings.wait_s - time.monotonic()

    def _choose(self) -> list[WaitingItem]:
        """By the policy. One that raises, or chooses nothing although all is free, fails the items it was to judge."""
        try:
            batch = self._settings.policy(self._waiting, self._room)
            if not batch and not self._in_work:
                raise AssertionError("the batch policy chose nothing although nothing else runs")
            return batch
        except Exception as error:
            logger.exception("the batch policy failed with %d items waiting", len(self._waiting))
            for item in self._waiting:
                item.fail(InternalError(f"the batch policy failed: {error!r}"))
            self._waiting = []
            return []

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for item in self._waiting:
            if item.wanted_until.last <= now:
                self.counters.expired_items += 1
                item.fail(DeadlineExceeded("the time of the request ran out before its turn to be encoded"))
        self._waiting = [item for item in self._waiting if not item.result.done()]

    async def _process(self, batch: list[WaitingItem], reservation: Reservation) -> None:
        started = time.monotonic()
        packed = await self._runner.pack([item.prepared for item in batch])
        reservation.media_bytes = 0
        for item, error in zip(batch, packed.errors, strict=True):
            if error is not None:
                item.fail(error)
        items = [item for item, error in zip(batch, packed.errors, strict=True) if error is None]
        if all(item.result.done() for item in items):
            return
        outcomes = await self._runner.encode(packed, [item.grid for item in items])
        encode_s = time.monotonic() - started
        self.counters.num_batches += 1
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, TriptychError):
                item.fail(outcome)
                continue
            self.counters.encoded_items += 1
            self.counters.encoded_patches += item.num_patches
            item.finish(BatchedEmbedding(outcome, started - item.prepared_at, encode_s, len(batch)))

    def _finished(self, reservation: Reservation, task: "asyncio.Task[None]") -> None:
        batch = self._in_work.pop(task)
        self._memory.release(reservation)
        self._changed.set()
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        logger.error("a batch of %d items failed", len(batch), exc_info=error)
        for item in batch:
            item.fail(error if isinstance(error, TriptychError) else InternalError(f"encoding failed: {error!r}"))
        if isinstance(error, EngineLost) and self._loop_task is not None:
            self._loop_task.cancel()

    def _loop_ended(self, task: "asyncio.Task[None]") -> None:
        if self._is_closing:
            return
        error = None if task.cancelled() else task.exception()
        logger.error("the encoder's batcher has ended by itself", exc_info=error)
        self._fail_all(Unavailable("the encoder's batcher has ended"))
        self._ended.set()

    def _fail_all(self, error: Exception) -> None:
        for item in [*self._waiting, *(item for batch in self._in_work.values() for item in batch)]:
            item.fail(error)
        self._waiting = []
