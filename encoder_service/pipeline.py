"""One item's way to its embedding: the cache, work in flight, or decode, batch and encode."""

import asyncio
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

from torch import Tensor

from encoder_service.admission import PatchAdmission
from encoder_service.batcher import Batcher
from encoder_service.cache import ContentId, EmbeddingCache
from encoder_service.in_flight import InFlight
from encoder_service.items import Embedding, MediaItem
from encoder_service.memory import MemoryBudget
from encoder_service.preparation import Preparation
from encoder_service.work import Turn, WorkDeadline
from triptych.errors import TriptychError

# What work that may be shared calls its item in errors; each who waits gets them in terms of its own field.
_SHARED_FIELD = "media"


@dataclass
class ItemCounters:
    """Since the start. Accepted items include the cached ones; hits include joins of work in flight."""

    accepted_items: int = 0
    rejected_items: int = 0
    cache_hits: int = 0


@dataclass(frozen=True)
class PendingEmbedding:
    """An item that was taken in. Cancelling `future` gives the item up."""

    future: "asyncio.Future[Embedding]"
    is_cache_hit: bool
    arrived: float
    field: str

    def error(self) -> BaseException | None:
        """What the work of a future that is done raised, with this item's own field."""
        error = self.future.exception()
        if not isinstance(error, TriptychError) or not error.field.startswith(_SHARED_FIELD):
            return error
        own = copy.copy(error)
        own.field = self.field + error.field.removeprefix(_SHARED_FIELD)
        own.message = error.message.replace(error.field, own.field, 1)
        own.args = (own.message,)
        return own

    def result(self) -> Embedding:
        """The embedding of a future that is done without an error, with this item's own times."""
        embedding = self.future.result()
        if not self.is_cache_hit:
            return embedding
        waited_s = max(0.0, embedding.finished_at - self.arrived)
        return replace(embedding, is_cache_hit=True, queue_s=waited_s, preprocess_s=0.0, encode_s=0.0)


class EncodePipeline:
    """Media items to embeddings, each content encoded once. Lives on the event loop and computes on threads."""

    def __init__(
        self,
        admission: PatchAdmission,
        memory: MemoryBudget,
        cache: EmbeddingCache,
        preparation: Preparation,
        batcher: Batcher,
    ) -> None:
        self.counters = ItemCounters()
        self._admission = admission
        self._memory = memory
        self._cache = cache
        self._preparation = preparation
        self._batcher = batcher
        self._in_flight: InFlight[Embedding] = InFlight()
        self._wanted_until: dict[ContentId, WorkDeadline] = {}

    @property
    def num_in_flight(self) -> int:
        """Contents that are being prepared or encoded, or wait for it."""
        return len(self._in_flight)

    def start(self) -> None:
        self._batcher.start()

    def admit(self, items: Sequence[MediaItem], deadline: float = math.inf) -> list[PendingEmbedding]:
        """Takes all items in, in the order of their prompt, and begins their work, or raises RequestTooLarge or
        Overloaded and takes none.

        Contents that are cached or in flight cost nothing. `deadline` is on the monotonic clock. The caller awaits or
        cancels every future.
        """
        new = {
            content: item
            for item in items
            if (content := _content_id(item)) not in self._cache and content not in self._in_flight
        }
        num_patches = [item.grid.num_patches for item in new.values()]
        try:
            for item in new.values():
                self._memory.check_alone(item.grid.num_patches, 0, item.field)
            self._admission.admit(num_patches)
        except TriptychError:
            self.counters.rejected_items += len(items)
            raise
        self.counters.accepted_items += len(items)
        arrived = time.monotonic()
        num_ahead = accumulate(
            (item.grid.num_patches if _content_id(item) in new else 0 for item in items[:-1]), initial=0
        )
        return [self._begin(item, Turn(arrived, num), deadline) for item, num in zip(items, num_ahead, strict=True)]

    async def close(self) -> None:
        """Ends what waits with Unavailable and gives the threads back."""
        await self._batcher.close()
        await asyncio.to_thread(self._preparation.close)
        await self._cache.close()

    def _begin(self, item: MediaItem, turn: Turn, deadline: float) -> PendingEmbedding:
        content, arrived = _content_id(item), turn.arrived
        cached = self._cache.get(content)
        if cached is not None:
            self.counters.cache_hits += 1
            future: asyncio.Future[Embedding] = asyncio.get_running_loop().create_future()
            future.set_result(_cached(cached, arrived))
            return PendingEmbedding(future, True, arrived, item.field)
        is_hit = content in self._in_flight or content in self._cache
        self.counters.cache_hits += is_hit
        if content in self._wanted_until:
            self._wanted_until[content].add(deadline)
        start = self._start_promotion if content in self._cache else self._start
        future = self._in_flight.join(content, lambda: start(item, turn, deadline))
        return PendingEmbedding(future, is_hit, arrived, item.field)

    def _start(self, item: MediaItem, turn: Turn, deadline: float) -> "asyncio.Task[Embedding]":
        content, wanted_until = _content_id(item), WorkDeadline(deadline)
        self._wanted_until[content] = wanted_until
        task = asyncio.create_task(self._encode(replace(item, field=_SHARED_FIELD), turn, wanted_until))
        # Not a `finally` in the coroutine: a task that is cancelled before its first step never enters it.
        task.add_done_callback(partial(self._settle, item.grid.num_patches))
        task.add_done_callback(partial(self._forget_deadline, content, wanted_until))
        return task

    def _start_promotion(self, item: MediaItem, turn: Turn, deadline: float) -> "asyncio.Task[Embedding]":
        return asyncio.create_task(self._promote(_content_id(item)))

    async def _promote(self, content: ContentId) -> Embedding:
        return _cached(await self._cache.promote(content), time.monotonic())

    def _settle(self, num_patches: int, task: "asyncio.Task[Embedding]") -> None:
        is_encoded = not task.cancelled() and task.exception() is None
        (self._admission.finish if is_encoded else self._admission.drop)(num_patches)

    def _forget_deadline(self, content: ContentId, wanted_until: WorkDeadline, task: "asyncio.Task[Embedding]") -> None:
        if self._wanted_until.get(content) is wanted_until:
            del self._wanted_until[content]

    async def _encode(self, item: MediaItem, turn: Turn, wanted_until: WorkDeadline) -> Embedding:
        arrived = time.monotonic()
        async with self._preparation.prepared(item, wanted_until) as prepared:
            batched = await self._batcher.submit(prepared.media, turn, wanted_until)
        self._cache.put(_content_id(item), batched.tensor)
        return Embedding(
            tensor=batched.tensor,
            is_cache_hit=False,
            queue_s=prepared.started - arrived + batched.queue_s,
            preprocess_s=prepared.preprocess_s,
            encode_s=batched.encode_s,
            batch_items=batched.batch_items,
            finished_at=time.monotonic(),
        )


def _cached(tensor: Tensor, finished_at: float) -> Embedding:
    return Embedding(tensor, True, 0.0, 0.0, 0.0, 0, finished_at)


def _content_id(item: MediaItem) -> ContentId:
    return item.content_key, item.grid
