"""KvExport: the parts in which the KV pages of one prompt leave for a decode actor, and which of them still may."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

from triptych.transport.parts import TicketPart


@dataclass(frozen=True, eq=False)
class ExportedPart:
    """A copy of a part's pages, [num_pages, num_layers of the part, 2, page_size, num_kv_heads, head_dim]."""

    part: TicketPart
    pages: Tensor


class KvExport:
    """Belongs to the engine's thread. last: leaves with the prompt's first token, and is none of those that are due."""

    def __init__(self, parts: Sequence[TicketPart]) -> None:
        """parts: those of a ticket, in their order."""
        *earlier, self.last = parts
        # By the layers that have to be computed; of each the next one is at the head.
        self._waiting: dict[int, deque[TicketPart]] = {}
        for part in earlier:
            self._waiting.setdefault(part.end_layer, deque()).append(part)

    def due(self, num_pages: int, num_layers: int) -> list[TicketPart]:
        """Those that have not left and lie within the first pages and layers, in the order in which they were made."""
        parts: list[TicketPart] = []
        for end_layer in sorted(self._waiting):
            if end_layer <= num_layers:
                parts += takewhile(lambda part: part.end_row <= num_pages, self._waiting[end_layer])
        return parts

    def layer_ends(self, num_pages: int) -> set[int]:
        """After so many layers each parts of the first pages may leave, before all layers are computed."""
        return {
            end_layer
            for end_layer, parts in self._waiting.items()
            if end_layer < self.last.end_layer and parts and parts[0].end_row <= num_pages
        }

    def note_left(self, part: TicketPart) -> None:
        """It is not due again, even if it is computed again."""
        assert self._waiting[part.end_layer].popleft() is part
