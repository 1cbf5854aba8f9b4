"""KvTransfer: brings a prompt's KV pages from the prefill actor that computed them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import torch

from llm_service.engine import Engine
from llm_service.kv_cache import PageShape
from llm_service.prompt import Prompt
from llm_service.sequence import FinishReason, Sequence
from llm_service.stage_spans import note_transfer
from triptych.errors import FailedPrecondition, IntegrityError
from triptych.rpc.deadline import Deadline
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.ticket import TensorSpec, Ticket


def check_kv_ticket(ticket: Ticket, prompt: Prompt, shape: PageShape, fingerprint: str) -> None:
    """Raises FailedPrecondition, saying what differs, unless a ticket names this prompt's pages as they are here."""
    if ticket.model_fingerprint != fingerprint:
        raise FailedPrecondition(
            f"kv_ticket is of the weights {ticket.model_fingerprint!r}, this actor has {fingerprint!r}; all actors "
            "must load one checkpoint (model.path)",
            field="kv_ticket.model_fingerprint",
        )
    spec = TensorSpec(shape.dtype, (-(-prompt.num_tokens // shape.page_size), *shape.dims))
    if ticket.spec == spec:
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
    """How the pages came. finish_reason: the first token ended the request already, and there is nothing to decode."""

    lane: str
    seconds: float
    finish_reason: FinishReason | None


class KvTransfer:
    """The decode side. The prefill side is the engine's export and a lease on it."""

    def __init__(self, engine: Engine, fetcher: TensorFetcher) -> None:
        self._engine = engine
        self._fetcher = fetcher

    async def bring(self, sequence: Sequence, ticket: Ticket, deadline: Deadline) -> KvArrival:
        """Gives the sequence its pages and first token. Full pages that are here already do not travel.

        Those are copied rather than held meanwhile: a fetch that hangs must not keep pages from sequences that run.
        """
        scheduler = self._engine.scheduler
        prefix = await asyncio.wrap_future(self._engine.call(lambda: scheduler.export_prefix(sequence)))
        timeout_s = deadline.next_hop_s("fetch KV pages")
        fetched = await self._fetcher.fetch(ticket, first_row=len(prefix), timeout_s=timeout_s)
        note_transfer("kv_transfer", fetched)
        outcome = fetched.outcome
        if outcome is None:
            raise IntegrityError(
                f"ticket {ticket.ticket_id} came without its prefill's first token, expected it in the header",
                field="prefill",
            )
        reason = FinishReason(outcome.finish_reason) if outcome.finish_reason else None
        sequence.take_over(outcome.first_token_id, torch.cat([prefix.to(fetched.tensor.device), fetched.tensor]))
        return KvArrival(fetched.lane, fetched.seconds, reason)
