"""EmbeddingSource: gets the embeddings of a prompt's media, from encoder actors or from the tower in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from llm_service.arrivals import Arrivals, Supply
from llm_service.embedder import Embedder, MediaInput
from llm_service.request import GenerationRequest
from llm_service.stage_spans import note_embedding_transfer
from triptych.errors import FailedPrecondition, IntegrityError, InvalidRequest, TriptychError
from triptych.rpc.deadline import Deadline
from triptych.switch import SWITCH
from triptych.telemetry.request_scope import note_span
from triptych.transport.fetcher import FetchedTensor, TensorFetcher
from triptych.transport.ticket import Ticket
from triptych.v1 import common_pb2

Result = TypeVar("Result")


@dataclass(frozen=True)
class Embeddings:
    """[length, hidden] for each media span, in order. Times are those of the slowest item, in seconds."""

    tensors: tuple[Tensor, ...] = ()
    transfer_s: float = 0.0
    lanes: tuple[str, ...] = ()
    encode_queue_s: float = 0.0
    encode_s: float = 0.0

    @classmethod
    def of(cls, fetched: Sequence[FetchedTensor]) -> Embeddings:
        """Those that encoders made."""
        return cls(
            tensors=tuple(item.tensor for item in fetched),
            transfer_s=max((item.seconds for item in fetched), default=0.0),
            lanes=tuple(item.lane for item in fetched),
        )


class EmbeddingArrival:
    """Embeddings that are here, or on their way with `arrivals`."""

    def __init__(self, here: Embeddings, arrivals: Arrivals | None) -> None:
        self._here = here
        self._arrivals = arrivals

    @property
    def tensors(self) -> Sequence[Tensor | None]:
        """What the request's sequences begin with, see `Sequence.embeddings`."""
        return self._here.tensors if self._arrivals is None else self._arrivals.tensors

    @property
    def skip(self) -> Callable[[int], None] | None:
        """What a sequence that needs the embeddings for itself alone may tell, see `Sequence.on_cached`."""
        return None if self._arrivals is None else self._arrivals.skip

    async def beside(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns or raises. When an embedding fails before that its error, and `work` is cancelled."""
        return await (work if self._arrivals is None else self._arrivals.beside(work))

    def arrived(self) -> Embeddings:
        """Those that have come so far, in order. A prompt found in the prefix cache may not have waited for all."""
        if self._arrivals is None:
            return self._here
        return Embeddings.of([fetched for _, fetched in sorted(self._arrivals.fetched.items())])


class EmbeddingSource:
    """A request's embeddings, all at once or as they are ready. `embedder` is None on an actor without a vision tower.

    `supply` puts one that comes later where the engine finds it; None where prefill waits for all of them.
    """

    def __init__(
        self, fetcher: TensorFetcher, embedder: Embedder | None, hidden_size: int, supply: Supply | None = None
    ) -> None:
        self._fetcher = fetcher
        self._embedder = embedder
        self._hidden_size = hidden_size
        self._supply = supply
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

    @asynccontextmanager
    async def arriving(self, request: GenerationRequest, deadline: Deadline) -> AsyncIterator[EmbeddingArrival]:
        """The request's embeddings for the length of the block: those that encoders make come while it is under way.
        Leaving it lets go of what has not come. Errors as `gather`, or from `EmbeddingArrival.beside`."""
        tickets = [source for source in request.sources if isinstance(source, Ticket)]
        if self._supply is None or not tickets or len(tickets) < len(request.sources):
            yield EmbeddingArrival(await self.gather(request, deadline), None)
            return
        timeout_s = deadline.next_hop_s("fetch embeddings")
        fetches = [self._fetch_checked(request, index, ticket, timeout_s) for index, ticket in enumerate(tickets)]
        arrivals = Arrivals(fetches, [span.end for span in request.prompt.media], self._supply)
        try:
            yield EmbeddingArrival(Embeddings(), arrivals)
        finally:
            await arrivals.close()

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
                tasks = [
                    group.create_task(self._fetch_checked(request, index, ticket, timeout_s))
                    for index, ticket in enumerate(tickets)
                ]
        except ExceptionGroup as failures:
            raise first_error(failures) from None
        return Embeddings.of([task.result() for task in tasks])

    async def _fetch_checked(
        self, request: GenerationRequest, index: int, ticket: Ticket, timeout_s: float
    ) -> FetchedTensor:
        fetched = await self._fetcher.fetch(ticket, timeout_s=timeout_s)
        note_embedding_transfer(fetched)
        self._check(request, index, fetched.tensor)
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
        for index, tensor in enumerate(embedded.tensors):
            self._check(request, index, tensor)
        return Embeddings(embedded.tensors, encode_queue_s=embedded.queue_s, encode_s=embedded.encode_s)

    def _check(self, request: GenerationRequest, index: int, tensor: Tensor) -> None:
        expected = (request.prompt.media[index].length, self._hidden_size)
        if tensor.shape != expected:
            raise IntegrityError(
                f"the embedding of prompt.media[{index}] has the shape {list(tensor.shape)}, expected {list(expected)}",
                field=f"prompt.media[{index}]",
            )
        self.num_accepted += 1


def first_error(failures: BaseExceptionGroup[Exception]) -> Exception:
    """What the group raised first, a typed error before a bug."""
    errors = [error for error in failures.exceptions if isinstance(error, TriptychError)]
    first = errors[0] if errors else failures.exceptions[0]
    assert isinstance(first, Exception)
    return first
