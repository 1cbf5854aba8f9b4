"""Tickets for tensors that do not exist yet: embeddings by their grid, KV pages by the length of the prompt."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from router.control.membership import Member
from router.dispatch.prepared_request import MediaItem
from triptych.models.qwen2_5_vl.config import TextConfig
from triptych.transport.parts import MAX_PARTS
from triptych.transport.ticket import dtype_from_proto, new_id
from triptych.v1 import common_pb2


@dataclass(frozen=True)
class TicketMaker:
    """`page_size` is that of the prefill and decode stages; a producer keeps what nobody fetches for `lease_s`.
    KV pages leave in parts of `kv_part_bytes` (0: as a whole), of the layers in up to `kv_layer_groups` groups."""

    text: TextConfig
    page_size: int
    lease_s: float
    kv_part_bytes: int = 0
    kv_layer_groups: int = 1

    def embedding_ticket(self, item: MediaItem, producer: Member) -> common_pb2.Ticket:
        """Names [num_tokens, hidden_size] on an encoder."""
        ticket = self._ticket(producer, [item.num_tokens, self.text.hidden_size])
        ticket.content_key = item.content_key
        ticket.grid.CopyFrom(item.grid)
        ticket.second_per_grid_t = item.second_per_grid_t
        return ticket

    def kv_ticket(self, num_prompt_tokens: int, producer: Member) -> common_pb2.Ticket:
        """Names [num_pages, num_layers, 2, page_size, num_kv_heads, head_dim] on a prefill actor."""
        num_pages = -(-num_prompt_tokens // self.page_size)
        text = self.text
        shape = [num_pages, text.num_hidden_layers, 2, self.page_size, text.num_key_value_heads, text.head_dim]
        ticket = self._ticket(producer, shape)
        if self.kv_part_bytes:
            self._cut(ticket)
        return ticket

    def _cut(self, ticket: common_pb2.Ticket) -> None:
        """Into parts: by layers first, which alone lets pages leave before their forward pass is over, and by rows."""
        num_pages, num_layers = ticket.shape[:2]
        layer_bytes = math.prod(ticket.shape[2:]) * dtype_from_proto(ticket.dtype).itemsize
        num_groups = max(1, min(self.kv_layer_groups, -(-num_pages * num_layers * layer_bytes // self.kv_part_bytes)))
        layers = -(-num_layers // num_groups)
        max_blocks = MAX_PARTS // -(-num_layers // layers)
        ticket.rows_per_part = max(1, self.kv_part_bytes // (layers * layer_bytes), -(-num_pages // max_blocks))
        ticket.layers_per_part = layers

    def _ticket(self, producer: Member, shape: list[int]) -> common_pb2.Ticket:
        return common_pb2.Ticket(
            ticket_id=new_id(),
            producer_id=producer.actor_id,
            producer_endpoint=producer.endpoint,
            producer_host_id=producer.host_id,
            device_id=producer.device_id,
            model_fingerprint=producer.model_fingerprint,
            dtype=producer.dtype,
            shape=shape,
            lanes=producer.lanes,
            lease_deadline_s=time.time() + self.lease_s,
        )
