# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""Causal attention of prompt chunks over pages: what a chunk attends to lies in the cache, its own tokens included.

For chunks after the first, for prompts behind a cached prefix, and for batches that mix chunks with decodes. A whole
prompt without a prefix is quicker through `dense_prefill`.
A short chunk behind a long context has too few blocks of queries to fill the GPU: then several programs share the
context of a block, and a second kernel merges what they found.
Floor: 4 * head_dim * num_heads operations per visible (query, token) pair, half of all pairs when there is no prefix.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.decode_attention import DecodeWorkspace, launch_merge
from triptych.kernels.launch import launch_options, wait_for_previous
from triptych.kernels.paged import attend_tile, check_pages, dot_precision, log2_scale, page_rows

_NUM_MULTIPROCESSORS = 132
_MAX_SPLITS = 8
# Fewer tiles than these are not worth a program of their own.
_MIN_SPLIT_TILES = 4


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
    workspace: DecodeWorkspace | None = None,
    out: Tensor | None = None,
    tiling: PrefillTiling | None = None,
    pdl: bool = False,
) -> Tensor:
    """Attention `out` [T, num_heads, head_dim] of packed `query` [T, num_heads, head_dim], the last tokens of each
    sequence.

    key_cache, value_cache: [num_pages, page_size, num_kv_heads, head_dim]. block_table: int32 [B, max_pages].
    context_lengths: int32 [B], tokens of each sequence including its queries. cu_seqlens_q: int32 [B + 1], where each
    sequence's queries begin in the packing; rows behind the last are left alone. workspace: of T rows, with the splits
    of `choose_prefill_splits`; rows behind the last are undefined then.
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
    num_splits = 1 if workspace is None else workspace.num_splits
    assert workspace is None or num_splits == 1 or workspace.logsumexp.numel() >= num_tokens * num_splits * num_heads
    _paged_prefill_kernel[(num_blocks, num_kv_heads, num_splits)](
        query,
        key_cache,
        value_cache,
        block_table,
        context_lengths,
        cu_seqlens_q,
        out,
        out if workspace is None else workspace.weighted,
        out if workspace is None else workspace.logsumexp,
        log2_scale(head_dim),
        num_sequences,
        query.stride(0),
        block_table.stride(0),
        num_splits,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        BLOCK_QUERIES=block_queries,
        BLOCK_ROWS=tiling.block_rows,
        BLOCK_TOKENS=tiling.block_tokens,
        MIN_TILES=_MIN_SPLIT_TILES,
        HAS_SPLITS=num_splits > 1,
        PRECISION=dot_precision(query.dtype),
        PDL=pdl,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **launch_options(pdl),
    )
    if workspace is not None and num_splits > 1:
        launch_merge(workspace, out, pdl=pdl)
    return out


def choose_prefill_splits(num_tokens: int, num_heads: int, num_kv_heads: int, tiling: PrefillTiling) -> int:
    """So many that blocks of queries times splits are one for each multiprocessor, as far as that goes."""
    block_queries = tiling.block_rows // (num_heads // num_kv_heads)
    num_programs = -(-num_tokens // block_queries) * num_kv_heads
    return max(1, min(_NUM_MULTIPROCESSORS // max(num_programs, 1), _MAX_SPLITS))


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


@triton.jit(do_not_specialize=["num_sequences", "block_table_stride", "num_splits"])
def _paged_prefill_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    context_lengths,
    cu_seqlens_q,
    out,
    partial_weighted,
    partial_logsumexp,
    log2_scale,
    num_sequences,
    query_stride,
    block_table_stride,
    num_splits,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MIN_TILES: tl.constexpr,
    HAS_SPLITS: tl.constexpr,
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

    # The tokens that all queries see are shared out; those that only some see go with the last of them, so that every
    # query sees a token of its first tile.
    first = 0
    shared_end = unmasked_end
    if HAS_SPLITS:
        split_tiles = tl.maximum(tl.cdiv(unmasked_end // BLOCK_TOKENS, num_splits), MIN_TILES)
        first = tl.program_id(2) * split_tiles * BLOCK_TOKENS
        shared_end = tl.minimum(first + split_tiles * BLOCK_TOKENS, unmasked_end)
        if (first >= unmasked_end) & (first > 0):
            partial_row = (row * num_splits + tl.program_id(2)) * NUM_HEADS + head
            tl.store(partial_logsumexp + partial_row, tl.full((BLOCK_ROWS,), float("-inf"), tl.float32), mask=is_row)
            return
        if shared_end < unmasked_end:
            end = shared_end

    maximum = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    weighted = tl.zeros((BLOCK_ROWS, HEAD_DIM), tl.float32)
    for start in range(first, shared_end, BLOCK_TOKENS):
        tokens = start + tl.arange(0, BLOCK_TOKENS)
        is_token = tokens < end
        rows = page_rows(pages, tokens, is_token, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE)
        maximum, total, weighted = attend_tile(
            queries, key_cache, value_cache, rows, is_token, is_token[None, :], log2_scale, maximum, total, weighted,
            HEAD_DIM, False, PRECISION,
        )  # fmt: skip
    for start in range(shared_end, end, BLOCK_TOKENS):
        tokens = start + tl.arange(0, BLOCK_TOKENS)
        is_token = tokens < end
        is_visible = is_token[None, :] & (tokens[None, :] <= position[:, None])
        rows = page_rows(pages, tokens, is_token, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE)
        maximum, total, weighted = attend_tile(
            queries, key_cache, value_cache, rows, is_token, is_visible, log2_scale, maximum, total, weighted,
            HEAD_DIM, True, PRECISION,
        )  # fmt: skip

    attended = weighted / total[:, None]
    if HAS_SPLITS:
        partial_row = (row * num_splits + tl.program_id(2)) * NUM_HEADS + head
        tl.store(partial_weighted + partial_row[:, None] * HEAD_DIM + dims[None, :], attended, mask=is_row[:, None])
        tl.store(partial_logsumexp + partial_row, maximum + tl.log2(total), mask=is_row)
    else:
        out_rows = out + (row * NUM_HEADS + head) * HEAD_DIM
        tl.store(out_rows[:, None] + dims[None, :], attended.to(out.dtype.element_ty), mask=is_row[:, None])
