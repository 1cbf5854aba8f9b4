# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""What decode and prefill attention share: reading tiles of pages, the online softmax, and the reference of both.

Pages of one layer: key_cache and value_cache [num_pages, page_size, num_kv_heads, head_dim], contiguous views of the
engine's one tensor. Token t of a sequence lies in page block_table[sequence, t // page_size] at offset t % page_size.
The softmax works in base 2, so scores are scaled by `log2_scale` = log2(e) / sqrt(head_dim).
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F


def log2_scale(head_dim: int) -> float:
    return math.log2(math.e) / math.sqrt(head_dim)


def dot_precision(dtype: torch.dtype) -> str:
    """Input precision of tl.dot: float32 stays float32 instead of becoming tf32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def check_pages(key_cache: Tensor, value_cache: Tensor, block_table: Tensor, context_lengths: Tensor) -> None:
    assert key_cache.is_contiguous() and value_cache.is_contiguous() and key_cache.shape == value_cache.shape
    assert block_table.dtype == context_lengths.dtype == torch.int32 and block_table.stride(1) == 1
    assert block_table.shape[0] == context_lengths.shape[0]


def paged_attention_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lengths: Sequence[int],
    query_lengths: Sequence[int],
) -> Tensor:
    """Causal attention of packed query [T, num_heads, head_dim] whose tokens are the last of each sequence, float32
    inside.

    A sequence of context length 0 gives zeros.
    """
    output = torch.zeros_like(query)
    page_size = key_cache.shape[1]
    first = 0
    for sequence, (context, num_queries) in enumerate(zip(context_lengths, query_lengths, strict=True)):
        if context > 0 and num_queries > 0:
            pages = block_table[sequence, : -(-context // page_size)].long()
            key, value = (cache[pages].flatten(0, 1)[:context].float() for cache in (key_cache, value_cache))
            tokens = torch.arange(context, device=query.device)
            is_visible = tokens[None, :] <= tokens[context - num_queries :, None]
            attended = F.scaled_dot_product_attention(
                query[first : first + num_queries].float().transpose(0, 1)[None],
                key.transpose(0, 1)[None],
                value.transpose(0, 1)[None],
                attn_mask=is_visible,
                enable_gqa=True,
            )
            output[first : first + num_queries] = attended[0].transpose(0, 1).to(query.dtype)
        first += num_queries
    return output


@triton.jit
def page_rows(
    block_table_row,
    tokens,
    is_token,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):
    """Element offsets in a cache of the rows of `tokens`, int64."""
    page = tl.load(block_table_row + tokens // PAGE_SIZE, mask=is_token, other=0).to(tl.int64)
    return ((page * PAGE_SIZE + tokens % PAGE_SIZE) * NUM_KV_HEADS + kv_head) * HEAD_DIM


@triton.jit
def attend_tile(
    query,
    key_cache,
    value_cache,
    rows,
    is_token,
    is_visible,
    log2_scale,
    maximum,
    total,
    weighted,
    HEAD_DIM: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One step of the online softmax: (running maximum, total, weighted values) after the tokens at `rows`.

    query [R, HEAD_DIM]; is_visible [R or 1, N], read if MASKED. A row must see a token of its first tile.
    """
    dims = tl.arange(0, HEAD_DIM)
    key = tl.load(key_cache + rows[None, :] + dims[:, None], mask=is_token[None, :], other=0.0)
    scores = tl.dot(query, key, input_precision=PRECISION) * log2_scale
    if MASKED:
        scores = tl.where(is_visible, scores, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
    decay = tl.exp2(maximum - new_maximum)
    weights = tl.exp2(scores - new_maximum[:, None])
    total = total * decay + tl.sum(weights, axis=1)
    value = tl.load(value_cache + rows[:, None] + dims[None, :], mask=is_token[:, None], other=0.0)
    weighted = weighted * decay[:, None]
    weighted = tl.dot(weights.to(value.dtype), value, weighted, input_precision=PRECISION)
    return new_maximum, total, weighted
