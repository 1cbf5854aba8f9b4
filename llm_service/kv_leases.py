"""KvLeases: the KV pages of a prefill actor's prompts under the leases of their tickets, whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from llm_service.engine import StepOutput
from llm_service.kv_export import ExportedPart
from triptych.errors import TriptychError
from triptych.transport.lease import LeaseTable
from triptych.transport.parts import parts_of
from triptych.transport.ticket import Ticket
from triptych.v1 import tensor_pb2


class KvLeases:
    """A ticket in parts is a lease on nothing beside the parts: releasing it, or letting it run out, is releasing all
    of them. Belongs to one event loop.
    """

    def __init__(self, leases: LeaseTable, num_layers: int) -> None:
        """num_layers: of a whole page."""
        self._leases = leases
        self._num_layers = num_layers
        self._num_page_layers = 0

    @property
    def num_pages(self) -> int:
        """Under leases now; layers of pages that left in several groups add up to pages."""
        return -(-self._num_page_layers // self._num_layers)

    def expect(self, ticket: Ticket, lease_s: float) -> None:
        """Fetches of the ticket and of its parts wait from now on."""
        self._leases.expect(ticket.ticket_id, lease_s, on_unwanted=self._release_parts(ticket))
        for part in parts_of(ticket):
            self._leases.expect(part.ticket.ticket_id, lease_s)

    def fail(self, ticket: Ticket, error: TriptychError) -> None:
        """Waiting and later fetches get the error; what is held is dropped."""
        self._leases.fail(ticket.ticket_id, error)
        for part in parts_of(ticket):
            self._leases.fail(part.ticket.ticket_id, error)

    def grant_parts(self, parts: Sequence[ExportedPart]) -> None:
        """Pages that are there while others of the prompt, or other layers of them, are still computed."""
        for exported in parts:
            self._grant(exported.part.ticket, exported.pages, None)

    def grant(self, ticket: Ticket, output: StepOutput) -> None:
        """The first token, and the pages with it: all, or the last part."""
        outcome = tensor_pb2.PrefillOutcome(first_token_id=output.token_ids[-1])
        if output.finish_reason is not None:
            outcome.finish_reason = output.finish_reason.value
        parts = parts_of(ticket)
        last = parts[-1].ticket if parts else ticket
        pages = output.kv_pages
        if pages is None:
            self._leases.grant(last.ticket_id, _nothing(last), outcome=outcome)
        else:
            self._grant(last, pages, outcome)
        if parts:
            self._leases.grant(ticket.ticket_id, _nothing(ticket), on_release=self._release_parts(ticket))

    def _grant(self, ticket: Ticket, pages: Tensor, outcome: tensor_pb2.PrefillOutcome | None) -> None:
        num_page_layers = pages.shape[0] * pages.shape[1]
        self._num_page_layers += num_page_layers

        def on_release() -> None:
            self._num_page_layers -= num_page_layers

        self._leases.grant(ticket.ticket_id, pages, outcome=outcome, on_release=on_release)

    def _release_parts(self, ticket: Ticket) -> Callable[[], None]:
        return partial(self._leases.release, [part.ticket.ticket_id for part in parts_of(ticket)])


def _nothing(ticket: Ticket) -> Tensor:
    """Consumers hold a tensor against its ticket's shape; this one has the shape and takes no memory."""
    return torch.zeros((), dtype=ticket.dtype).expand(ticket.shape)
