"""Does a ticket name what this actor makes?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from encoder_service.items import EncodeItem, MediaItem
from triptych.config import LimitsSection
from triptych.errors import FailedPrecondition, InvalidRequest, RequestTooLarge, Unavailable
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.transport.ticket import TensorSpec, Ticket


@dataclass(frozen=True)
class ProducedTensors:
    """Who makes the embeddings, from which weights, and what they look like. `hidden_size` is an embedding's width."""

    producer_id: str
    model_fingerprint: str
    dtype: torch.dtype
    hidden_size: int
    merge_size: int
    patch_dim: int

    @property
    def bytes_per_patch(self) -> int:
        """What a patch takes in a batch, as a row of pixels and as its share of an embedding."""
        return self.dtype.itemsize * (self.patch_dim + -(-self.hidden_size // self.merge_size**2))

    def spec(self, grid: Grid) -> TensorSpec:
        return TensorSpec(self.dtype, (grid.num_tokens(self.merge_size), self.hidden_size))


def check_tickets(items: Sequence[EncodeItem], produced: ProducedTensors, limits: LimitsSection) -> list[MediaItem]:
    """The items to encode.

    Raises FailedPrecondition for tickets of other weights, Unavailable for those of another incarnation,
    InvalidRequest for what no embedding of the item can be, RequestTooLarge for too many items.
    """
    if not items:
        raise InvalidRequest("items is empty, expected at least one picture or video", field="items")
    if len(items) > limits.max_media_items:
        raise RequestTooLarge(
            f"{len(items)} items, expected at most {limits.max_media_items} (limits.max_media_items)", field="items"
        )
    ticket_ids = [item.ticket.ticket_id for item in items]
    if len(set(ticket_ids)) < len(ticket_ids):
        raise InvalidRequest("two items have the same ticket_id, expected one ticket an item", field="items")
    return [_media_item(item, produced, f"items[{index}]") for index, item in enumerate(items)]


def _media_item(item: EncodeItem, produced: ProducedTensors, field: str) -> MediaItem:
    ticket = item.ticket
    _check_producer(ticket, produced, f"{field}.ticket")
    if not ticket.content_key:
        raise InvalidRequest(f"{field}.ticket.content_key is empty", field=f"{field}.ticket.content_key")
    grid, merge = ticket.grid, produced.merge_size
    if grid is None or min(grid.t, grid.h, grid.w) < 1 or grid.h % merge or grid.w % merge:
        raise InvalidRequest(
            f"{field}.ticket.grid is {grid}, expected sides >= 1 with rows and columns in multiples of {merge}",
            field=f"{field}.ticket.grid",
        )
    spec = produced.spec(grid)
    if ticket.spec != spec:
        raise InvalidRequest(
            f"{field}.ticket expects {ticket.spec}, but the embedding of {grid} here is {spec}",
            field=f"{field}.ticket",
        )
    return MediaItem(ticket.content_key, grid, item.media, f"{field}.media")


def _check_producer(ticket: Ticket, produced: ProducedTensors, field: str) -> None:
    if ticket.producer_id != produced.producer_id:
        raise Unavailable(
            f"{field}.producer_id is {ticket.producer_id}, but this encoder is {produced.producer_id}: "
            "the one meant has ended",
            field=f"{field}.producer_id",
        )
    if ticket.model_fingerprint != produced.model_fingerprint:
        raise FailedPrecondition(
            f"{field}.model_fingerprint is {ticket.model_fingerprint!r}, but this encoder has the weights "
            f"{produced.model_fingerprint!r} (model.path must name the same checkpoint everywhere)",
            field=f"{field}.model_fingerprint",
        )
