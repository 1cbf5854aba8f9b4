"""The backend over FlashInfer: what it tells the library of a step. On a GPU that has the package, what comes back.

Without one, a few lines of torch read the page table as FlashInfer's documentation describes it.
"""

from __future__ import annotations

import sys
from array import array
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from engine_helpers import CPU
from torch import Tensor

from llm_service.attention.base import StepLayout
from llm_service.attention.flashinfer import FlashInferPagedAttention
from llm_service.attention.torch import TorchPagedAttention
from llm_service.kv_cache import PagedKvCache, PageShape
from triptych.models.qwen2_5_vl.attention import Attention

PAGE_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, NUM_LAYERS = 4, 6, 2, 64, 2


class DocumentedWrapper:
    """`plan` and `run` by the tutorial on layouts of pages of flashinfer 0.5.3, arguments by position as there."""

    num_plans = 0

    def __init__(self, workspace: Tensor, kv_layout: str) -> None:
        assert workspace.dtype == torch.uint8 and kv_layout == "NHD"

    def plan(
        self, qo_indptr: Tensor, paged_kv_indptr: Tensor, paged_kv_indices: Tensor, paged_kv_last_page_len: Tensor,
        num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, page_size: int, *, causal: bool, q_data_type: Any,
        kv_data_type: Any,
    ) -> None:  # fmt: skip
        assert (num_qo_heads, num_kv_heads, head_dim_qk, page_size) == (NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE)
        assert causal and q_data_type == kv_data_type == torch.float32
        indices = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(tensor.dtype == torch.int32 for tensor in indices)
        self._ends, self._page_ends, self._pages, self._last = (tensor.tolist() for tensor in indices)
        DocumentedWrapper.num_plans += 1

    def run(self, query: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        outputs = []
        for index, last in enumerate(self._last):
            assert 1 <= last <= PAGE_SIZE
            pages = self._pages[self._page_ends[index] : self._page_ends[index + 1]]
            num_tokens = (len(pages) - 1) * PAGE_SIZE + last
            key, value = (states[pages].flatten(0, 1)[:num_tokens].transpose(0, 1) for states in cache)
            rows = query[self._ends[index] : self._ends[index + 1]].transpose(0, 1)
            is_visible = torch.ones(rows.shape[1], num_tokens, dtype=torch.bool).tril(num_tokens - rows.shape[1])
            attended = torch.nn.functional.scaled_dot_product_attention(
                rows[None], key[None], value[None], attn_mask=is_visible, enable_gqa=True
            )
            outputs.append(attended[0].transpose(0, 1))
        return torch.cat(outputs)


def mixed_layout() -> StepLayout:
    """Decodes at the first and the last place of a page, a chunk behind others, a whole prompt; tables with room."""
    tables = [array("i", pages) for pages in ((5, 2), (7,), (1, 9, 3, 8), (0, 4, 6))]
    num_new, num_tokens = [1, 1, 6, 9], [5, 4, 11, 9]
    slots = [
        table[token // PAGE_SIZE] * PAGE_SIZE + token % PAGE_SIZE
        for table, new, total in zip(tables, num_new, num_tokens, strict=True)
        for token in range(total - new, total)
    ]
    return StepLayout(np.array(slots, dtype=np.int64), num_new, num_tokens, tables)


def attended(backend: type[Any], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    cache = PagedKvCache(PageShape(NUM_LAYERS, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, dtype), 12, device)
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    cache.tensor.copy_(random(*cache.tensor.shape))
    layout = mixed_layout()
    attention: Attention = backend(cache).plan(layout)
    num_tokens = sum(layout.num_new_tokens)
    return [
        attention(
            layer,
            random(num_tokens, NUM_HEADS, HEAD_DIM),
            random(num_tokens, NUM_KV_HEADS, HEAD_DIM),
            random(num_tokens, NUM_KV_HEADS, HEAD_DIM),
        )
        for layer in range(NUM_LAYERS)
    ]


def test_a_step_is_described_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flashinfer")
    module.BatchPrefillWithPagedKVCacheWrapper = DocumentedWrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(DocumentedWrapper, "num_plans", 0)
    actual = attended(FlashInferPagedAttention, CPU, torch.float32)
    assert DocumentedWrapper.num_plans == 1, "one plan serves all layers"
    for one, other in zip(actual, attended(TorchPagedAttention, CPU, torch.float32), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
def test_on_a_gpu_it_is_plain_torch() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("flashinfer")
    device = torch.device("cuda")
    actual = attended(FlashInferPagedAttention, device, torch.bfloat16)
    for one, other in zip(actual, attended(TorchPagedAttention, device, torch.bfloat16), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
