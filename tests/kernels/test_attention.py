"""Decode and prefill attention over pages against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from triptych.kernels.decode_attention import (
    DecodeTiling,
    DecodeWorkspace,
    choose_num_splits,
    paged_decode_attention,
    rotary_decode_attention,
)
from triptych.kernels.dense_prefill import dense_causal_attention
from triptych.kernels.paged import paged_attention_reference
from triptych.kernels.prefill_attention import PrefillTiling, choose_prefill_splits, paged_prefill_attention
from triptych.kernels.rotary import rotary_and_store_reference, rotary_table

HEAD_DIM = 32


@dataclass
class Pages:
    """One layer of a cache, taken from the middle of the engine's tensor, and block tables in a random order of
    pages."""

    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    context_lengths: Tensor


def make_pages(
    lengths: list[int], num_kv_heads: int, page_size: int, dtype: torch.dtype, device: torch.device
) -> Pages:
    max_pages = max(1, -(-max(lengths) // page_size))
    num_pages = len(lengths) * max_pages + 1
    cache = torch.randn(3, 2, num_pages, page_size, num_kv_heads, HEAD_DIM, device=device).to(dtype)
    table = torch.randperm(num_pages, device=device)[:-1].view(len(lengths), max_pages).to(torch.int32)
    keys, values = cache[1].unbind(0)
    # What lies behind a sequence's last token belongs to nobody, and may be anything.
    for sequence, length in enumerate(lengths):
        if length % page_size:
            last_page = int(table[sequence, length // page_size])
            keys[last_page, length % page_size :] = torch.nan
            values[last_page, length % page_size :] = torch.nan
    return Pages(keys, values, table, torch.tensor(lengths, dtype=torch.int32, device=device))


@pytest.mark.parametrize("is_merged_by_last", [True, False])
@pytest.mark.parametrize("num_splits", [1, 3, 8])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "page_size"), [(8, 1, 16), (14, 2, 32)])
def test_paged_decode(
    num_heads: int, num_kv_heads: int, page_size: int, num_splits: int, is_merged_by_last: bool, device: torch.device
) -> None:
    lengths = [1, 70, 0, 33, 16]
    pages = make_pages(lengths, num_kv_heads, page_size, torch.float32, device)
    query = torch.randn(len(lengths), num_heads, HEAD_DIM, device=device)
    workspace = DecodeWorkspace.of(len(lengths), num_heads, num_kv_heads, HEAD_DIM, num_splits, device)
    workspace.weighted.fill_(torch.nan)
    workspace.logsumexp.fill_(torch.nan)
    tiling = DecodeTiling(block_tokens=16, num_warps=4, num_stages=2)
    arguments = (query, pages.key_cache, pages.value_cache, pages.block_table)
    expected = paged_attention_reference(*arguments, lengths, [int(length > 0) for length in lengths[:2]] + [1, 1, 1])
    for _ in range(2):  # the second launch finds the workspace as the first left it
        out = torch.full_like(query, torch.nan)
        paged_decode_attention(
            *arguments, pages.context_lengths, workspace, out=out, tiling=tiling, is_merged_by_last=is_merged_by_last
        )
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        assert not workspace.arrivals.any()


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("is_merged_by_last", [True, False])
def test_rotary_decode_is_rotation_store_and_attention(
    num_splits: int, is_merged_by_last: bool, device: torch.device
) -> None:
    lengths, num_heads, num_kv_heads, page_size = [1, 70, 0, 17, 65], 14, 2, 16
    pages = make_pages(lengths, num_kv_heads, page_size, torch.float32, device)
    width = (num_heads + 2 * num_kv_heads) * HEAD_DIM
    qkv, positions = torch.randn(len(lengths), width, device=device), torch.randint(0, 90, (3, 5), device=device)
    table, sections = rotary_table(90, HEAD_DIM, 1e4, device), (4, 6, 6)
    slots = torch.tensor(
        [
            int(pages.block_table[i, (length - 1) // page_size]) * page_size + (length - 1) % page_size
            if length
            else -1
            for i, length in enumerate(lengths)
        ],
        device=device,
    )
    caches = [pages.key_cache.clone(), pages.value_cache.clone()]
    query = rotary_and_store_reference(qkv, positions, table, sections, *caches, slots)
    expected = paged_attention_reference(query, *caches, pages.block_table, lengths, [1] * len(lengths))
    workspace = DecodeWorkspace.of(len(lengths), num_heads, num_kv_heads, HEAD_DIM, num_splits, device)
    out = rotary_decode_attention(
        qkv, positions, table, sections, pages.key_cache, pages.value_cache, slots, pages.block_table,
        pages.context_lengths, workspace, tiling=DecodeTiling(16, 4, 2), is_merged_by_last=is_merged_by_last,
    )  # fmt: skip
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pages.key_cache, caches[0], equal_nan=True, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pages.value_cache, caches[1], equal_nan=True)


def test_decode_in_half_precision(half_dtype: torch.dtype, device: torch.device) -> None:
    pages = make_pages([40, 9], 1, 16, half_dtype, device)
    query = torch.randn(2, 7, HEAD_DIM, device=device).to(half_dtype)
    arguments = (query, pages.key_cache, pages.value_cache, pages.block_table)
    workspace = DecodeWorkspace.of(2, 7, 1, HEAD_DIM, 2, device)
    out = paged_decode_attention(*arguments, pages.context_lengths, workspace, tiling=DecodeTiling(16, 4, 2))
    expected = paged_attention_reference(*arguments, [40, 9], [1, 1])
    torch.testing.assert_close(out.float(), expected.float(), rtol=2e-2, atol=2e-2)


def test_num_splits_fill_the_gpu_and_stay_within_the_context() -> None:
    assert choose_num_splits(1, 2, 512) == 8
    assert choose_num_splits(1, 2, 32_768) == 64
    assert choose_num_splits(64, 2, 32_768) == 2
    assert choose_num_splits(256, 2, 32_768) == 1
    assert choose_num_splits(1024, 4, 32_768) == 1


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 2), (7, 1)])
def test_paged_prefill(num_heads: int, num_kv_heads: int, page_size: int, device: torch.device) -> None:
    # A whole prompt, a chunk behind a prefix, a decode, a padding sequence, and a chunk of several blocks.
    query_lengths, context_lengths = [20, 5, 1, 0, 37], [20, 41, 30, 0, 50]
    pages = make_pages(context_lengths, num_kv_heads, page_size, torch.float32, device)
    query = torch.randn(sum(query_lengths) + 2, num_heads, HEAD_DIM, device=device)
    cu_seqlens = torch.tensor([0, *torch.tensor(query_lengths).cumsum(0)], dtype=torch.int32, device=device)
    arguments = (query, pages.key_cache, pages.value_cache, pages.block_table)
    out = torch.full_like(query, torch.nan)
    tiling = PrefillTiling(block_rows=32, block_tokens=16, num_warps=4, num_stages=2)
    paged_prefill_attention(*arguments, pages.context_lengths, cu_seqlens, out=out, tiling=tiling)
    expected = paged_attention_reference(*arguments, context_lengths, query_lengths)
    torch.testing.assert_close(out[:-2], expected[:-2], rtol=1e-5, atol=1e-5)
    assert bool(out[-2:].isnan().all()), "rows behind the last sequence were written"


@pytest.mark.parametrize("num_splits", [2, 5])
def test_paged_prefill_with_shared_contexts(num_splits: int, device: torch.device) -> None:
    """Contexts long enough for several programs, or for one; and blocks whose first query ends a tile."""
    query_lengths, context_lengths = [9, 17, 0, 20, 8], [150, 40, 0, 20, 200]
    pages = make_pages(context_lengths, 2, 16, torch.float32, device)
    query = torch.randn(sum(query_lengths), 8, HEAD_DIM, device=device)
    cu_seqlens = torch.tensor([0, *torch.tensor(query_lengths).cumsum(0)], dtype=torch.int32, device=device)
    arguments = (query, pages.key_cache, pages.value_cache, pages.block_table)
    workspace = DecodeWorkspace.of(len(query), 8, 2, HEAD_DIM, num_splits, device)
    workspace.weighted.fill_(torch.nan)
    workspace.logsumexp.fill_(torch.nan)
    tiling = PrefillTiling(block_rows=32, block_tokens=8, num_warps=4, num_stages=2)
    out = paged_prefill_attention(*arguments, pages.context_lengths, cu_seqlens, workspace=workspace, tiling=tiling)
    expected = paged_attention_reference(*arguments, context_lengths, query_lengths)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_prefill_splits_fill_the_gpu() -> None:
    tiling = PrefillTiling(block_rows=128)
    assert [choose_prefill_splits(num, 16, 2, tiling) for num in (64, 256, 512, 1_024, 2_048)] == [8, 4, 2, 1, 1]


def test_dense_attention_keeps_prompts_apart(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the variants of the GPU take bfloat16: tests/gpu")
    lengths = [5, 1, 9]
    query, key, value = (torch.randn(15, heads, HEAD_DIM) for heads in (4, 2, 2))
    cu_seqlens = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    out = dense_causal_attention(query, key, value, lengths, cu_seqlens)
    alone = dense_causal_attention(query[6:], key[6:], value[6:], [9], torch.tensor([0, 9], dtype=torch.int32))
    torch.testing.assert_close(out[6:], alone)
    torch.testing.assert_close(out[0, 3], value[0, 1])
