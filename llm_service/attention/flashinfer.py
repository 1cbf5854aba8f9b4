"""FlashInferPagedAttention: the paged kernels of FlashInfer, for decodes and prompts alike.

An optional backend (package flashinfer-python, and nvcc at the first start: it compiles its kernels then). Steps run
kernel by kernel on the plain runner, without graphs. Written against the interface of flashinfer 0.5.3; its layout of
pages is that of the cache ("NHD"), so nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from llm_service.attention.base import StepLayout
from llm_service.kv_cache import PagedKvCache
from triptych.models.qwen2_5_vl.attention import Attention

# What FlashInfer recommends for partial results of contexts that are split.
_WORKSPACE_BYTES = 128 << 20


class FlashInferPagedAttention:
    """Plans a step once, for all layers. One step at a time: they share FlashInfer's work space."""

    def __init__(self, cache: PagedKvCache) -> None:
        # An optional package, and slow to import.
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper

        self.cache = cache
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=cache.device)
        self._wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")

    def plan(self, layout: StepLayout) -> Attention:
        return _StepAttention(
            self.cache,
            self._wrapper,
            PageIndices.of(layout, self.cache.page_size),
            torch.from_numpy(layout.slots).to(self.cache.device),
        )


@dataclass(frozen=True)
class PageIndices:
    """A step of B sequences as FlashInfer wants it, int32 on the host.

    query_ends: [B + 1], where the new tokens of each begin and end; page_ends: [B + 1], the same in `pages`, which are
    those in use of all sequences, one after the other; last_page_tokens: [B], tokens on the last one, 1 to page_size.
    """

    query_ends: Tensor
    page_ends: Tensor
    pages: Tensor
    last_page_tokens: Tensor

    @classmethod
    def of(cls, layout: StepLayout, page_size: int) -> PageIndices:
        nums_pages = [-(-num_tokens // page_size) for num_tokens in layout.num_tokens]
        # Tables have pages for tokens to come as well.
        pages = [page for table, num in zip(layout.block_tables, nums_pages, strict=True) for page in table[:num]]
        return cls(
            query_ends=_int32([0, *accumulate(layout.num_new_tokens)]),
            page_ends=_int32([0, *accumulate(nums_pages)]),
            pages=_int32(pages),
            last_page_tokens=_int32([(num_tokens - 1) % page_size + 1 for num_tokens in layout.num_tokens]),
        )


@dataclass
class _StepAttention:
    cache: PagedKvCache
    wrapper: Any
    indices: PageIndices
    slots: Tensor
    is_planned: bool = field(default=False, init=False)

    def __call__(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.cache.store(layer_index, self.slots, key, value)
        if not self.is_planned:
            self._plan(query)
        output: Tensor = self.wrapper.run(query.contiguous(), self.cache.layer(layer_index))
        return output

    def _plan(self, query: Tensor) -> None:
        """Once the first layer says how many query heads there are. Causal: a new token sees what is before it."""
        indices, shape = self.indices, self.cache.shape
        self.wrapper.plan(
            indices.query_ends,
            indices.page_ends,
            indices.pages,
            indices.last_page_tokens,
            query.shape[1],
            shape.num_kv_heads,
            shape.head_dim,
            shape.page_size,
            causal=True,
            q_data_type=query.dtype,
            kv_data_type=shape.dtype,
        )
        self.is_planned = True


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
