"""The encode stage without its network side: admission, work, and leases on what was made."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from encoder_service.admission import PatchAdmission
from encoder_service.batch_runner import BatchRunner
from encoder_service.batcher import Batcher, BatchSettings
from encoder_service.batching import batch_policy
from encoder_service.cache import EmbeddingCache
from encoder_service.engines import VisionEngine, WeightCount
from encoder_service.items import Embedding, EncodeItem, MediaItem
from encoder_service.media.loader import PatchLoader
from encoder_service.memory import MemoryBudget
from encoder_service.pipeline import EncodePipeline, PendingEmbedding
from encoder_service.preparation import Preparation
from encoder_service.tickets import ProducedTensors, check_tickets
from encoder_service.work import picture_bytes
from triptych.config import EncoderSection, LimitsSection, TransportSection
from triptych.errors import Cancelled, InternalError, TriptychError, Unavailable
from triptych.transport.device_copy import DeviceCopies
from triptych.transport.lease import LeaseTable
from triptych.transport.ticket import Ticket
from triptych.v1 import admin_pb2

_DRAIN_POLL_S = 0.02
_PAUSE_POLL_S = 0.002


@dataclass(frozen=True)
class StageSettings:
    """The sections of the configuration that the stage obeys."""

    encoder: EncoderSection
    limits: LimitsSection
    transport: TransportSection


class EncoderStage:
    """Pictures and videos in; embeddings under leases, or straight to a caller in this process, out.

    Belongs to one event loop. `start` before use, `close` at the end.
    """

    def __init__(
        self, settings: StageSettings, engine: VisionEngine, loader: PatchLoader, produced: ProducedTensors
    ) -> None:
        encoder = settings.encoder
        device = engine.device
        self.produced = produced
        self.leases = LeaseTable(settings.transport.lease_s, settings.transport.unknown_ticket_wait_s)
        self._engine = engine
        self._limits = settings.limits
        self._admission = PatchAdmission(encoder.max_pending_patches)
        self._memory = MemoryBudget(
            encoder.activation_bytes,
            produced.bytes_per_patch,
            engine.activation_bytes,
            # A picture that is larger than media_bytes is decoded alone.
            max_media_bytes=max(encoder.media_bytes, picture_bytes(settings.limits.max_image_pixels)),
        )
        copies = DeviceCopies() if device.type == "cuda" else None
        self._cache = EmbeddingCache(encoder.cache_bytes, encoder.host_cache_bytes, copies, device=device)
        self._runner = BatchRunner(loader, engine)
        self._batcher = Batcher(
            self._runner,
            self._memory,
            BatchSettings(
                policy=batch_policy(encoder.batching),
                max_patches=encoder.max_batch_patches,
                ageing_s=encoder.ageing_s,
                wait_s=encoder.batch_wait_ms / 1000,
            ),
        )
        self._preparation = Preparation(loader, encoder.media_workers, encoder.media_bytes)
        self._pipeline = EncodePipeline(self._admission, self._memory, self._cache, self._preparation, self._batcher)
        self._sweeper: asyncio.Task[None] | None = None
        self._num_calls = 0
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def is_alive(self) -> bool:
        """Whether what was taken in is still being worked on: not once the batcher has ended by itself."""
        return self._batcher.is_alive

    async def wait_ended(self) -> None:
        """Until the stage has ended by itself, because of a bug or a lost device."""
        await self._batcher.wait_ended()

    @property
    def device(self) -> torch.device:
        return self._engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self._engine.dtype

    def start(self) -> None:
        self._pipeline.start()
        self._sweeper = asyncio.create_task(self.leases.run(), name="encoder-lease-sweeper")

    async def encode(self, items: Sequence[EncodeItem], timeout_s: float) -> list[Embedding | None]:
        """Encodes all items; each ticket is granted as soon as its own embedding is there, or failed with its error.

        Answers when all are done, and raises the first error in the order of the items. An item whose ticket is
        released before that is given up, and None in the answer: its consumer has its KV pages already. A call that is
        cancelled or fails drops what is not encoded yet and every lease that nobody is reading. `timeout_s` is the time
        the caller gives: work that did not begin by then is dropped, and tickets stay pending that long without a
        heartbeat.
        """
        tickets = [item.ticket for item in items]
        try:
            pending = self._admit(items, time.monotonic() + timeout_s)
        except TriptychError as error:
            self._fail(tickets, error)
            raise
        for ticket, embedding in zip(tickets, pending, strict=True):
            self.leases.expect(ticket.ticket_id, timeout_s, on_unwanted=partial(_give_up, embedding))
            embedding.future.add_done_callback(partial(self._hand_over, ticket, embedding))
        try:
            return await self._wait(pending)
        except asyncio.CancelledError:
            self._fail(tickets, Cancelled("the Encode call was cancelled or its deadline passed"))
            raise
        except Exception as error:
            self._fail(tickets, _typed(error))
            raise

    async def embed(self, items: Sequence[MediaItem]) -> list[Embedding]:
        """Encodes for a caller in this process, without tickets. Errors as `encode`; cancelling drops the work."""
        self._check_is_taking_work()
        embeddings = await self._wait(self._pipeline.admit(items))
        return [embedding for embedding in embeddings if embedding is not None]

    async def drain(self, timeout_s: float) -> bool:
        """Takes no new work from now on; True when all work ended and all leases went within `timeout_s`."""
        self._is_draining = True
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not self._is_idle():
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(_DRAIN_POLL_S)
        return True

    async def pause(self, timeout_s: float) -> bool:
        """Takes no new work until `resume`; True when what runs ended within `timeout_s`. Leases stay, and can be
        fetched."""
        self._is_draining = True
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._is_working():
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(_PAUSE_POLL_S)
        return True

    def resume(self) -> None:
        """Takes work again, after `pause`."""
        self._is_draining = False

    async def close(self) -> None:
        """Ends what runs with Unavailable, lets go of all tensors and threads. Idempotent."""
        self._is_draining = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._pipeline.close()
        self.leases.close()

    def counters(self) -> admin_pb2.EncoderCounters:
        items, batches, cache = self._pipeline.counters, self._batcher.counters, self._cache
        return admin_pb2.EncoderCounters(
            accepted_items=items.accepted_items,
            rejected_items=items.rejected_items,
            encoded_items=batches.encoded_items,
            encoded_patches=batches.encoded_patches,
            num_batches=batches.num_batches,
            pending_patches=self._admission.pending_patches,
            max_pending_patches=self._admission.max_pending_patches,
            cache_hits=items.cache_hits,
            cache_items=len(cache.on_device),
            cache_bytes=cache.device_bytes,
            device_cache_hits=cache.counters.device_hits,
            host_cache_hits=cache.counters.host_hits,
            host_cache_items=len(cache.on_host),
            host_cache_bytes=cache.on_host.num_bytes,
            expired_items=batches.expired_items,
            activation_bytes=self._memory.held_bytes,
            max_activation_bytes=self._memory.max_bytes,
        )

    def weights(self) -> WeightCount:
        """Counted on the live modules."""
        return self._engine.weights()

    def _admit(self, items: Sequence[EncodeItem], deadline: float) -> list[PendingEmbedding]:
        self._check_is_taking_work()
        try:
            media_items = check_tickets(items, self.produced, self._limits)
        except TriptychError:
            self._pipeline.counters.rejected_items += len(items)
            raise
        return self._pipeline.admit(media_items, deadline)

    async def _wait(self, pending: Sequence[PendingEmbedding]) -> list[Embedding | None]:
        futures = [embedding.future for embedding in pending]
        self._num_calls += 1
        try:
            await asyncio.wait(futures)
            # Looking at all of them, so that a second error does not count as forgotten.
            wanted = [embedding for embedding in pending if not embedding.future.cancelled()]
            errors = [error for embedding in wanted if (error := embedding.error()) is not None]
            if errors:
                raise errors[0]
            return [None if embedding.future.cancelled() else embedding.result() for embedding in pending]
        finally:
            self._num_calls -= 1
            for future in futures:
                future.cancel()

    def _hand_over(self, ticket: Ticket, embedding: PendingEmbedding, future: "asyncio.Future[Embedding]") -> None:
        if future.cancelled():
            return
        error = embedding.error()
        if error is None:
            self.leases.grant(ticket.ticket_id, future.result().tensor)
        else:
            self.leases.fail(ticket.ticket_id, _typed(error))

    def _fail(self, tickets: Sequence[Ticket], error: TriptychError) -> None:
        """Waiting and later fetches get the error that the caller gets. What is being read goes when it was read."""
        for ticket in tickets:
            self.leases.fail(ticket.ticket_id, error)

    def _check_is_taking_work(self) -> None:
        if not self.is_alive:
            raise Unavailable(f"the engine of encoder {self.produced.producer_id} has ended")
        if self._is_draining:
            raise Unavailable(f"encoder {self.produced.producer_id} is going away and takes no new work")

    def _is_working(self) -> bool:
        return bool(self._num_calls or self._pipeline.num_in_flight)

    def _is_idle(self) -> bool:
        leases = self.leases.counters()
        return not self._is_working() and leases.held_leases == 0 and leases.pending == 0


def _give_up(embedding: PendingEmbedding) -> None:
    embedding.future.cancel()


def _typed(error: BaseException) -> TriptychError:
    return error if isinstance(error, TriptychError) else InternalError(f"encoding failed: {error!r}")
