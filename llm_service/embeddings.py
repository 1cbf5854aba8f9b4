"""EmbeddingSource: gets the embeddings of a prompt's media, from encoder actors or from the tower in this process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from torch import Tensor

from llm_service.embedder import Embedder, MediaInput
from llm_service.request import GenerationRequest
from llm_service.stage_spans import note_transfer
from triptych.errors import FailedPrecondition, IntegrityError, InvalidRequest, TriptychError
from triptych.rpc.deadline import Deadline
from triptych.switch import SWITCH
from triptych.telemetry.request_scope import note_span
from triptych.transport.fetcher import FetchedTensor, TensorFetcher
from triptych.transport.ticket import Ticket
from triptych.v1 import common_pb2


@dataclass(frozen=True)
class Embeddings:
    """[length, hidden] for each media span, in order. Times are those of the slowest item, in seconds."""

    tensors: tuple[Tensor, ...] = ()
    transfer_s: float = 0.0
    lanes: tuple[str, ...] = ()
    encode_queue_s: float = 0.0
    encode_s: float = 0.0


class EmbeddingSource:
    """All of a request's embeddings at once. `embedder` is None on an actor without a vision tower."""

    def __init__(self, fetcher: TensorFetcher, embedder: Embedder | None, hidden_size: int) -> None:
        self._fetcher = fetcher
        self._embedder = embedder
        self._hidden_size = hidden_size
        self.num_accepted = 0

    def check(self, request: GenerationRequest) -> None:
        """As `check_pixels`; raises InvalidRequest too, for a place in the prompt that has neither ticket nor media."""
        self.check_pixels(request)
        for index, source in enumerate(request.sources):
            if source is None:
                field = f"prompt.media[{index}]"
                raise InvalidRequest(f"{field} has neither a ticket nor media, expected one", field=field)

    def check_pixels(self, request: GenerationRequest) -> None:
        """Raises FailedPrecondition for media that need a tower, without one."""
        for index, source in enumerate(request.sources):
            field = f"prompt.media[{index}]"
            if isinstance(source, common_pb2.Media) and self._embedder is None:
                raise FailedPrecondition(
                    f"{field}.media holds raw media, but this LLM actor was started with {SWITCH}=1 and holds no "
                    "vision tower; send media to an encoder actor and its ticket here, or set mode: colocated",
                    field=f"{field}.media",
                )

    async def gather(self, request: GenerationRequest, deadline: Deadline) -> Embeddings:
        """Raises the first error; whatever else was under way is cancelled and let go of then."""
        if not request.sources:
            return Embeddings()
        if any(isinstance(source, common_pb2.Media) for source in request.sources):
            return await self._embed(request)
        return await self._fetch(request, deadline)

    async def _fetch(self, request: GenerationRequest, deadline: Deadline) -> Embeddings:
        tickets = [source for source in request.sources if isinstance(source, Ticket)]
        timeout_s = deadline.next_hop_s("fetch embeddings")
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._fetch_one(ticket, timeout_s)) for ticket in tickets]
        except ExceptionGroup as failures:
            raise _first_error(failures) from None
        fetched = [task.result() for task in tasks]
        return self._checked(
            request,
            Embeddings(
                tensors=tuple(item.tensor for item in fetched),
                transfer_s=max(item.seconds for item in fetched),
                lanes=tuple(item.lane for item in fetched),
            ),
        )

    async def _fetch_one(self, ticket: Ticket, timeout_s: float) -> FetchedTensor:
        fetched = await self._fetcher.fetch(ticket, timeout_s=timeout_s)
        note_transfer("embedding_transfer", fetched)
        return fetched

    async def _embed(self, request: GenerationRequest) -> Embeddings:
        assert self._embedder is not None, "`check` refuses media without a tower"
        inputs = []
        for index, (source, span) in enumerate(zip(request.sources, request.prompt.media, strict=True)):
            if not isinstance(source, common_pb2.Media):
                raise InvalidRequest(
                    f"prompt.media[{index}] is a ticket beside raw media, expected one kind for all",
                    field=f"prompt.media[{index}]",
                )
            inputs.append(MediaInput(span.content_key, span.grid, source, f"prompt.media[{index}].media"))
        embedded = await self._embedder.embed(inputs)
        ended_s = time.monotonic()
        note_span("encode", ended_s - embedded.encode_s, ended_s, queue_s=embedded.queue_s, num_items=len(inputs))
        return self._checked(
            request, Embeddings(embedded.tensors, encode_queue_s=embedded.queue_s, encode_s=embedded.encode_s)
        )

    def _checked(self, request: GenerationRequest, embeddings: Embeddings) -> Embeddings:
        for index, (span, tensor) in enumerate(zip(request.prompt.media, embeddings.tensors, strict=True)):
            if tensor.shape != (span.length, self._hidden_size):
                raise IntegrityError(
                    f"the embedding of prompt.media[{index}] has the shape {list(tensor.shape)}, "
                    f"expected {[span.length, self._hidden_size]}",
                    field=f"prompt.media[{index}]",
                )
        self.num_accepted += len(embeddings.tensors)
        return embeddings


def _first_error(failures: BaseExceptionGroup[Exception]) -> Exception:
    """What the group raised first, a typed error before a bug."""
    errors = [error for error in failures.exceptions if isinstance(error, TriptychError)]
    first = errors[0] if errors else failures.exceptions[0]
    assert isinstance(first, Exception)
    return first
