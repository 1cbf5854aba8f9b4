"""Media threads: items to what packing needs, with a bound on what waits prepared."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from encoder_service.items import MediaItem
from encoder_service.media.loader import PatchLoader
from encoder_service.media.prepared import PreparedMedia
from encoder_service.work import WorkDeadline, host_bytes
from triptych.errors import DeadlineExceeded


@dataclass(frozen=True)
class Prepared:
    """`started` is on the monotonic clock, `preprocess_s` what the media thread took."""

    media: PreparedMedia
    started: float
    preprocess_s: float


class Preparation:
    """Prepares items in the order of their arrival. Lives on the event loop.

    A thread begins the next item only while fewer than `max_held_bytes` are prepared and not packed yet: a small file
    may be large once it is decoded, and admission counts patches. So at most one item a thread lies above the bound.
    """

    def __init__(self, loader: PatchLoader, num_threads: int, max_held_bytes: int) -> None:
        self.held_bytes = 0
        self._loader = loader
        self._max_held_bytes = max_held_bytes
        self._num_free = num_threads
        self._queue: deque[asyncio.Future[None]] = deque()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="encoder-media")

    @asynccontextmanager
    async def prepared(self, item: MediaItem, wanted_until: WorkDeadline) -> AsyncIterator[Prepared]:
        """The prepared item, whose bytes count until the block is left. Raises what the loader raises, and
        DeadlineExceeded when nobody wants the item any more by the time a thread is free."""
        await self._take_thread()
        held_bytes = 0
        try:
            try:
                if wanted_until.last <= time.monotonic():
                    raise DeadlineExceeded(
                        f"the time of the request ran out before {item.field} was decoded", field=item.field
                    )
                prepared = await self._prepare(item)
                held_bytes = host_bytes(prepared.media)
                self.held_bytes += held_bytes
            finally:
                self._num_free += 1
                self._let_go_on()
            yield prepared
        finally:
            self.held_bytes -= held_bytes
            self._let_go_on()

    def close(self) -> None:
        """Waits for what runs. Not for an event loop."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _prepare(self, item: MediaItem) -> Prepared:
        given_up = threading.Event()

        def work() -> Prepared:
            started = time.monotonic()
            media = self._loader.prepare(item, given_up)
            return Prepared(media, started, time.monotonic() - started)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            given_up.set()

    async def _take_thread(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._let_go_on()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled() and turn in self._queue:
                self._queue.remove(turn)
            elif not turn.cancelled():
                self._num_free += 1  # it was granted in the same moment
                self._let_go_on()
            raise

    def _let_go_on(self) -> None:
        while self._queue and self._num_free > 0 and self.held_bytes < self._max_held_bytes:
            turn = self._queue.popleft()
            if not turn.done():
                self._num_free -= 1
                turn.set_result(None)
