"""KvTransfer: brings a prompt's KV pages from the prefill actor that computed them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from llm_service.embeddings import first_error
from llm_service.engine import Engine
from llm_service.kv_cache import PageShape
from llm_service.page_landing import PageLanding
from llm_service.prompt import Prompt
from llm_service.sequence import FinishReason, Sequence
from llm_service.stage_spans import note_kv_transfer
from triptych.errors import FailedPrecondition, IntegrityError
from triptych.rpc.deadline import Deadline
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.parts import TicketPart, parts_of, whole_of
from triptych.transport.ticket import TensorSpec, Ticket
from triptych.v1.tensor_pb2 import PrefillOutcome


def check_kv_ticket(ticket: Ticket, prompt: Prompt, shape: PageShape, fingerprint: str) -> None:
    """Raises FailedPrecondition, saying what differs, unless a ticket names this prompt's pages as they are here, and
    InvalidRequest for one in too many parts."""
    if ticket.model_fingerprint != fingerprint:
        raise FailedPrecondition(
            f"kv_ticket is of the weights {ticket.model_fingerprint!r}, this actor has {fingerprint!r}; all actors "
            "must load one checkpoint (model.path)",
            field="kv_ticket.model_fingerprint",
        )
    spec = TensorSpec(shape.dtype, (-(-prompt.num_tokens // shape.page_size), *shape.dims))
    if ticket.spec == spec:
        parts_of(ticket)
        return
    is_other_page_size = len(ticket.shape) == len(spec.shape) and ticket.shape[3] != shape.page_size
    hint = (
        f"page_size is {ticket.shape[3]} there and {shape.page_size} here; stages.*.page_size must be equal"
        if is_other_page_size
        else "model.dtype and stages.*.page_size must be equal on prefill and decode actors"
    )
    raise FailedPrecondition(
        f"kv_ticket names KV pages {ticket.spec}, those of {prompt.num_tokens} prompt tokens are {spec} here: {hint}",
        field="kv_ticket.shape",
    )


@dataclass(frozen=True)
class KvArrival:
    """How the pages came. seconds: from when the last of them were offered until all were here. finish_reason: the
    first token ended the request already, and there is nothing to decode."""

    lane: str
    seconds: float
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class _Fetched:
    """What is kept of a part whose pages have landed. offered_s, ended_s: on the monotonic clock."""

    lane: str
    num_bytes: int
    outcome: PrefillOutcome | None
    offered_s: float
    ended_s: float


class KvTransfer:
    """The decode side. The prefill side is the engine's export and `KvLeases`."""

    def __init__(self, engine: Engine, fetcher: TensorFetcher, max_under_way: int) -> None:
        """max_under_way: parts of one layer group of a ticket that are fetched, or waited for, at once."""
        self._engine = engine
        self._fetcher = fetcher
        self._max_under_way = max_under_way

    async def bring(self, sequence: Sequence, ticket: Ticket, deadline: Deadline) -> KvArrival:
        """Gives the sequence its pages and first token. Full pages that are here already do not travel.

        Those are copied rather than held meanwhile: a fetch that hangs must not keep pages from sequences that run.
        """
        scheduler = self._engine.scheduler
        prefix = await asyncio.wrap_future(self._engine.call(lambda: scheduler.export_prefix(sequence)))
        timeout_s = deadline.next_hop_s("fetch KV pages")
        landing = PageLanding(ticket.spec, prefix)
        parts = parts_of(ticket)
        if parts:
            fetched = await self._fetch_parts(ticket, parts, landing, len(prefix), timeout_s)
        else:
            fetched = [await self._fetch(whole_of(ticket), landing, len(prefix), timeout_s)]
        last = fetched[-1]
        outcome = last.outcome
        if outcome is None:
            raise IntegrityError(
                f"ticket {ticket.ticket_id} came without its prefill's first token, expected it in the header",
                field="prefill",
            )
        reason = FinishReason(outcome.finish_reason) if outcome.finish_reason else None
        sequence.take_over(outcome.first_token_id, landing.pages())
        ended_s = max(item.ended_s for item in fetched)
        note_kv_transfer(last.lane, last.offered_s, ended_s, sum(item.num_bytes for item in fetched))
        return KvArrival(last.lane, ended_s - last.offered_s, reason)

    async def _fetch_parts(
        self, ticket: Ticket, parts: Seq[TicketPart], landing: PageLanding, num_here: int, timeout_s: float
    ) -> list[_Fetched]:
        """Those with rows from `num_here` on, and the last in any case; the ticket itself keeps the others' leases."""
        # The parts of one group become ready in their order, but which group is ahead depends on the prefill's chunks:
        # none may hold up another.
        turns: dict[int, asyncio.Semaphore] = {}

        async def fetch(part: TicketPart) -> _Fetched:
            async with turns.setdefault(part.first_layer, asyncio.Semaphore(self._max_under_way)):
                return await self._fetch(part, landing, num_here, timeout_s)

        needed = [part for part in parts if part.end_row > num_here or part is parts[-1]]
        async with self._fetcher.keeping(ticket):
            try:
                async with asyncio.TaskGroup() as group:
                    # In their order, in which they are computed.
                    tasks = [group.create_task(fetch(part)) for part in needed]
            except ExceptionGroup as failures:
                raise first_error(failures) from None
        return [task.result() for task in tasks]

    async def _fetch(self, part: TicketPart, landing: PageLanding, num_here: int, timeout_s: float) -> _Fetched:
        first_row = max(num_here - part.first_row, 0)
        fetched = await self._fetcher.fetch(part.ticket, first_row=first_row, timeout_s=timeout_s)
        offered_s = time.monotonic() - fetched.seconds
        await landing.put(part, fetched.tensor)
        return _Fetched(fetched.lane, fetched.tensor.nbytes, fetched.outcome, offered_s, time.monotonic())
