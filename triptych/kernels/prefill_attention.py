# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""Causal attention of prompt chunks over pages: what a chunk attends to lies in the cache, its own tokens included.

For chunks after the first, for prompts behind a cached prefix, and for batches that mix chunks with decodes. A whole
prompt without a prefix is quicker through `dense_prefill`.
Floor: 4 * head_dim * num_heads operations per visible (query, token) pair, half of all pairs when there is no prefix.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import launch_options, wait_for_previous
from triptych.kernels.paged import attend_tile, check_pages, dot_precision, log2_scale, page_rows


@dataclass(frozen=True)
class PrefillTiling:
    """How the work of one program is cut. block_rows: query tokens times the heads of a KV head, filled up."""

    block_rows: int = 128
    block_tokens: int = 64
    num_warps: int = 8
    num_stages: int = 5  # two of them wait for page numbers


def paged_prefill_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lengths: Tensor,
    cu_seqlens_q: Tensor,
    *,
    out: Tensor | None = None,
    tiling: PrefillTiling | None = None,
    pdl: bool = False,
) -> Tensor:
    """Attention `out` [T, num_heads, head_dim] of packed `query` [T, num_heads, head_dim], the last tokens of each
    sequence.

    key_cache, value_cache: [num_pages, page_size, num_kv_heads, head_dim]. block_table: int32 [B, max_pages].
    context_lengths: int32 [B], tokens of each sequence including its queries. cu_seqlens_q: int32 [B + 1], where each
    sequence's queries begin in the packing; rows behind the last are left alone.
    """
    tiling = PrefillTiling() if tiling is None else tiling
    num_tokens, num_heads, head_dim = query.shape
    page_size, num_kv_heads = key_cache.shape[1:3]
    group = num_heads // num_kv_heads
    block_queries = tiling.block_rows // group
    out = torch.empty_like(query) if out is None else out
    check_pages(key_cache, value_cache, block_table, context_lengths)
    assert query.stride()[1:] == (head_dim, 1) and out.is_contiguous() and cu_seqlens_q.dtype == torch.int32
    assert block_queries >= 1, f"{group} query heads of a KV head do not fit into block_rows={tiling.block_rows}"
    if num_tokens == 0:
        return out
    num_sequences = context_lengths.shape[0]
    # Every sequence may waste one block: an upper bound that needs no lengths on the host.
    num_blocks = num_tokens // block_queries + num_sequences
    _paged_prefill_kernel[(num_blocks, num_kv_heads)](
        query,
        key_cache,
        value_cache,
        block_table,
        context_lengths,
        cu_seqlens_q,
        out,
        log2_scale(head_dim),
        num_sequences,
        query.stride(0),
        block_table.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        BLOCK_QUERIES=block_queries,
        BLOCK_ROWS=tiling.block_rows,
        BLOCK_TOKENS=tiling.block_tokens,
        PRECISION=dot_precision(query.dtype),
        PDL=pdl,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **launch_options(pdl),
    )
    return out


@triton.jit
def _find_sequence(cu_seqlens_q, block, num_sequences, BLOCK_QUERIES: tl.constexpr):
    """The last sequence whose first block, cu_seqlens_q[s] // BLOCK_QUERIES + s, is not behind `block`."""
    low = 0
    high = num_sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        first_block = tl.load(cu_seqlens_q + middle) // BLOCK_QUERIES + middle
        if first_block <= block:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit(do_not_specialize=["num_sequences", "block_table_stride"])
def _paged_prefill_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    context_lengths,
    cu_seqlens_q,
    out,
    log2_scale,
    num_sequences,
    query_stride,
    block_table_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_previous(PDL)
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    # The last queries of a prompt see the most tokens: they start first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = _find_sequence(cu_seqlens_q, block, num_sequences, BLOCK_QUERIES)
    first_row = tl.load(cu_seqlens_q + sequence)
    num_queries = tl.load(cu_seqlens_q + sequence + 1) - first_row
    first_query = (block - (first_row // BLOCK_QUERIES + sequence)) * BLOCK_QUERIES
    if first_query >= num_queries:
        return

    lanes = tl.arange(0, BLOCK_ROWS)
    query_index = first_query + lanes // GROUP
    is_row = (lanes < BLOCK_QUERIES * GROUP) & (query_index < num_queries)
    row = (first_row + query_index).to(tl.int64)
    head = kv_head * GROUP + lanes % GROUP
    dims = tl.arange(0, HEAD_DIM)
    query_rows = query + row * query_stride + head * HEAD_DIM
    queries = tl.load(query_rows[:, None] + dims[None, :], mask=is_row[:, None], other=0.0)

    num_cached = tl.load(context_lengths + sequence) - num_queries
    position = num_cached + query_index
    end = num_cached + tl.minimum(first_query + BLOCK_QUERIES, num_queries)
    unmasked_end = (num_cached + first_query + 1) // BLOCK_TOKENS * BLOCK_TOKENS
    pages = block_table + sequence.to(tl.int64) * block_table_stride

    maximum = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    weighted = tl.zeros((BLOCK_ROWS, HEAD_DIM), tl.float32)
    for start in range(0, unmasked_end, BLOCK_TOKENS):
        tokens = start + tl.arange(0, BLOCK_TOKENS)
        is_token = tokens < end
        rows = page_rows(pages, tokens, is_token, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE)
        maximum, total, weighted = attend_tile(
            queries, key_cache, value_cache, rows, is_token, is_token[None, :], log2_scale, maximum, total, weighted,
            HEAD_DIM, False, PRECISION,
        )  # fmt: skip
    for start in range(unmasked_end, end, BLOCK_TOKENS):
        tokens = start + tl.arange(0, BLOCK_TOKENS)
        is_token = tokens < end
        is_visible = is_token[None, :] & (tokens[None, :] <= position[:, None])
        rows = page_rows(pages, tokens, is_token, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE)
        maximum, total, weighted = attend_tile(
            queries, key_cache, value_cache, rows, is_token, is_visible, log2_scale, maximum, total, weighted,
            HEAD_DIM, True, PRECISION,
        )  # fmt: skip

    out_rows = out + (row * NUM_HEADS + head) * HEAD_DIM
    attended = (weighted / total[:, None]).to(out.dtype.element_ty)
    tl.store(out_rows[:, None] + dims[None, :], attended, mask=is_row[:, None])
