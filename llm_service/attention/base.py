"""What a paged attention backend is: it is told the shape of a step, and answers with the step's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llm_service.page_pool import PageTable
from triptych.models.qwen2_5_vl.attention import Attention


@dataclass(frozen=True)
class StepLayout:
    """How the packed tokens of one step belong to sequences, and where those have their pages.

    slots: int64 [T], page * page_size + offset in the page, where each token's key and value go.
    Per sequence, in packed order: its new tokens, its tokens with these, and its pages.
    """

    slots: NDArray[np.int64]
    num_new_tokens: list[int]
    num_tokens: list[int]
    block_tables: list[PageTable]


class PagedAttention(Protocol):
    """Stores keys and values in the pages, and attends over them."""

    def plan(self, layout: StepLayout) -> Attention:
        """The attention of one step, called once for every layer; what all layers share is worked out here."""
        ...
