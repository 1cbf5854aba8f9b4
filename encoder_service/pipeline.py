"""One item's way to its embedding: the cache, work in flight, or decode, batch and encode."""

import asyncio
import copy
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from encoder_service.admission import PatchAdmission
from encoder_service.batcher import Batcher
from encoder_service.cache import ContentId, EmbeddingCache
from encoder_service.in_flight import InFlight
from encoder_service.items import Embedding, MediaItem
from encoder_service.media import prepare_patches
from triptych.config import LimitsSection
from triptych.errors import TriptychError
from triptych.media.layout import MediaProcessing

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
        cache: EmbeddingCache,
        batcher: Batcher,
        processing: MediaProcessing,
        limits: LimitsSection,
        media_workers: int,
    ) -> None:
        self.counters = ItemCounters()
        self._admission = admission
        self._cache = cache
        self._batcher = batcher
        self._processing = processing
        self._limits = limits
        self._in_flight: InFlight[Embedding] = InFlight()
        self._media_threads = ThreadPoolExecutor(media_workers, thread_name_prefix="encoder-media")

    @property
    def num_in_flight(self) -> int:
        """Contents that are being prepared or encoded, or wait for it."""
        return len(self._in_flight)

    def start(self) -> None:
        self._batcher.start()

    def admit(self, items: Sequence[MediaItem]) -> list[PendingEmbedding]:
        """Takes all items in and begins their work, or raises RequestTooLarge or Overloaded and takes none.

        Contents that are cached or in flight cost nothing. The caller awaits or cancels every future.
        """
        num_patches = {
            content: content[1].num_patches
            for content in map(_content_id, items)
            if content not in self._cache and content not in self._in_flight
        }
        try:
            self._admission.admit(list(num_patches.values()))
        except TriptychError:
            self.counters.rejected_items += len(items)
            raise
        self.counters.accepted_items += len(items)
        return [self._begin(item) for item in items]

    async def close(self) -> None:
        """Ends what waits with Unavailable and gives the threads back."""
        await self._batcher.close()
        await asyncio.to_thread(self._media_threads.shutdown, wait=True, cancel_futures=True)
        self._cache.clear()

    def _begin(self, item: MediaItem) -> PendingEmbedding:
        content, arrived = _content_id(item), time.monotonic()
        cached = self._cache.get(content)
        if cached is not None:
            self.counters.cache_hits += 1
            future: asyncio.Future[Embedding] = asyncio.get_running_loop().create_future()
            future.set_result(Embedding(cached, True, 0.0, 0.0, 0.0, 0, arrived))
            return PendingEmbedding(future, True, arrived, item.field)
        is_join = content in self._in_flight
        self.counters.cache_hits += is_join
        future = self._in_flight.join(content, lambda: self._start(item))
        return PendingEmbedding(future, is_join, arrived, item.field)

    def _start(self, item: MediaItem) -> "asyncio.Task[Embedding]":
        task = asyncio.create_task(self._encode(replace(item, field=_SHARED_FIELD)))
        # Not a `finally` in the coroutine: a task that is cancelled before its first step never enters it.
        task.add_done_callback(partial(self._settle, item.grid.num_patches))
        return task

    def _settle(self, num_patches: int, task: "asyncio.Task[Embedding]") -> None:
        is_encoded = not task.cancelled() and task.exception() is None
        (self._admission.finish if is_encoded else self._admission.drop)(num_patches)

    async def _encode(self, item: MediaItem) -> Embedding:
        arrived = time.monotonic()
        given_up = threading.Event()
        try:
            started, patches = await asyncio.get_running_loop().run_in_executor(
                self._media_threads, self._prepare, item, given_up
            )
        finally:
            given_up.set()
        prepared = time.monotonic()
        batched = await self._batcher.submit(patches, item.grid)
        self._cache.put(_content_id(item), batched.tensor)
        return Embedding(
            tensor=batched.tensor,
            is_cache_hit=False,
            queue_s=started - arrived + batched.queue_s,
            preprocess_s=prepared - started,
            encode_s=batched.encode_s,
            batch_items=batched.batch_items,
            finished_at=time.monotonic(),
        )

    def _prepare(self, item: MediaItem, given_up: threading.Event) -> tuple[float, Tensor]:
        """On a media thread: when it began, and the patches."""
        started = time.monotonic()
        return started, prepare_patches(item, self._processing, self._limits, given_up)


def _content_id(item: MediaItem) -> ContentId:
    return item.content_key, item.grid
