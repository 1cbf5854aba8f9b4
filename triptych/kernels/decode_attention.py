"""Attention of one new token per sequence over its pages (split-KV flash decoding).

One program takes all query heads of one KV head, padded to 16 rows for the matrix units, over one part of the tokens.
Two entries: `paged_decode_attention` over a rotated query and a filled cache, and `rotary_decode_attention`, which
rotates, stores and attends in one kernel. The launch is the same for every length, so a captured graph serves all of
them. Floor: bytes. 2 * num_kv_heads * head_dim elements per token of context.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.kernels.decode_kernel import decode_kernel, merge_kernel
from triptych.kernels.launch import launch_options, power_of_two_at_least
from triptych.kernels.paged import check_pages, dot_precision, log2_scale
from triptych.kernels.prefetch import WARP_LANES, Upcoming

_MIN_GROUP = 16


@dataclass(frozen=True)
class DecodeTiling:
    """block_tokens: tokens of a tile, the least that a split gets."""

    block_tokens: int = 64
    num_warps: int = 4
    num_stages: int = 5  # two of them wait for page numbers


@dataclass(frozen=True)
class DecodeWorkspace:
    """What splits leave for whoever merges them. One serves all layers, but not two streams.

    weighted: float32 [B, num_splits, num_heads, head_dim], the softmax-weighted values. logsumexp: float32 [B,
    num_splits, num_heads], base 2. arrivals: int32 [B, num_kv_heads], zero between launches.
    """

    num_splits: int
    weighted: Tensor
    logsumexp: Tensor
    arrivals: Tensor

    @classmethod
    def of(
        cls, batch_size: int, num_heads: int, num_kv_heads: int, head_dim: int, num_splits: int, device: torch.device
    ) -> "DecodeWorkspace":
        rows = batch_size * num_splits * num_heads if num_splits > 1 else 0
        return cls(
            num_splits,
            torch.empty(rows * head_dim, dtype=torch.float32, device=device),
            torch.empty(rows, dtype=torch.float32, device=device),
            torch.zeros(batch_size * num_kv_heads, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True)
class DecodePlan:
    """How a batch is cut. is_merged_by_last: the last split of a KV head to finish merges all of them; otherwise a
    second kernel does."""

    num_splits: int
    tiling: DecodeTiling
    is_merged_by_last: bool


# Sequences times KV heads up to which programs are few: two on each of 132 multiprocessors, each with much on its way.
_MAX_FEW_PAIRS = 256
_MANY_PROGRAMS = 512
_MAX_SPLITS_OF_ONE_WARP = 4
MAX_SPLITS = 64


def choose_plan(batch_size: int, num_kv_heads: int, max_context: int) -> DecodePlan:
    """From what is known when a graph is captured. There are no more splits than tiles in the longest context; splits
    that a shorter context leaves empty end at once. The quickest of those measured on an H200 at 1 to 256 sequences of
    512 to 32,768 tokens: few programs with deep pipelines, or many with shallow ones, of which more fit at a time; for
    one sequence small tiles."""
    pairs = batch_size * num_kv_heads
    is_few = pairs <= _MAX_FEW_PAIRS
    wanted = -(-_MAX_FEW_PAIRS // pairs) if is_few else _MANY_PROGRAMS // pairs
    num_splits = max(1, min(wanted, -(-max_context // DecodeTiling.block_tokens), MAX_SPLITS))
    return DecodePlan(num_splits, _choose_tiling(batch_size, pairs), is_merged_by_last=not is_few)


def _choose_tiling(batch_size: int, pairs: int) -> DecodeTiling:
    if batch_size == 1:
        return DecodeTiling(block_tokens=32, num_stages=4)
    if _MAX_FEW_PAIRS // 2 < pairs <= _MAX_FEW_PAIRS:
        return DecodeTiling(num_stages=5)
    return DecodeTiling(num_warps=2 if _MAX_FEW_PAIRS // 4 < pairs <= _MAX_FEW_PAIRS // 2 else 4, num_stages=3)


def choose_num_splits(batch_size: int, num_kv_heads: int, max_context: int) -> int:
    return choose_plan(batch_size, num_kv_heads, max_context).num_splits


def paged_decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lengths: Tensor,
    workspace: DecodeWorkspace,
    *,
    out: Tensor | None = None,
    is_merged_by_last: bool = True,
    tiling: DecodeTiling | None = None,
    pdl: bool = False,
) -> Tensor:
    """Attention `out` [B, num_heads, head_dim] of `query` [B, num_heads, head_dim], rows may be strided.

    key_cache, value_cache: [num_pages, page_size, num_kv_heads, head_dim]. block_table: int32 [B, max_pages].
    context_lengths: int32 [B], with the new token, whose key and value are in the cache already; 0 is padding, its
    output row is zeros. is_merged_by_last: the last split of a KV head to finish merges all of them; otherwise a
    second kernel does.
    """
    batch_size, num_heads, head_dim = query.shape
    assert query.stride()[1:] == (head_dim, 1)
    out = torch.empty((batch_size, num_heads, head_dim), dtype=query.dtype, device=query.device) if out is None else out
    _launch(
        query, None, key_cache, value_cache, block_table, context_lengths, workspace, out, (0, 0, 0),
        is_merged_by_last=is_merged_by_last, tiling=tiling, pdl=pdl,
    )  # fmt: skip
    return out


def rotary_decode_attention(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    sections: tuple[int, int, int],
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    block_table: Tensor,
    context_lengths: Tensor,
    workspace: DecodeWorkspace,
    *,
    out: Tensor | None = None,
    is_merged_by_last: bool = True,
    tiling: DecodeTiling | None = None,
    upcoming: Upcoming | None = None,
    pdl: bool = False,
) -> Tensor:
    """`rotary_and_store` and `paged_decode_attention` in one: `out` [B, num_heads, head_dim] from the packed
    projection.

    qkv: [B, (num_heads + 2 * num_kv_heads) * head_dim]. positions: int64 [3, B]. table, sections, slot_mapping: as
    `rotary_and_store` takes them. context_lengths: int32 [B], with the new token, which this call stores.
    upcoming: a weight that a later kernel reads, see `prefetch`.
    """
    batch_size, width = qkv.shape
    num_kv_heads, head_dim = key_cache.shape[-2:]
    num_heads = width // head_dim - 2 * num_kv_heads
    assert qkv.stride(1) == positions.stride(1) == 1 and table.is_contiguous() and sum(sections) * 2 == head_dim
    out = torch.empty((batch_size, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device) if out is None else out
    _launch(
        qkv, (positions, table, slot_mapping), key_cache, value_cache, block_table, context_lengths, workspace, out,
        sections, is_merged_by_last=is_merged_by_last, tiling=tiling, upcoming=upcoming, pdl=pdl,
    )  # fmt: skip
    return out


def _launch(
    query: Tensor,
    rotary: tuple[Tensor, Tensor, Tensor] | None,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lengths: Tensor,
    workspace: DecodeWorkspace,
    out: Tensor,
    sections: tuple[int, int, int],
    *,
    is_merged_by_last: bool,
    tiling: DecodeTiling | None,
    upcoming: Upcoming | None = None,
    pdl: bool,
) -> None:
    batch_size, num_heads, head_dim = out.shape
    page_size, num_kv_heads = key_cache.shape[1:3]
    num_splits = workspace.num_splits
    check_pages(key_cache, value_cache, block_table, context_lengths)
    assert out.is_contiguous() and block_table.shape[0] == batch_size
    assert workspace.arrivals.numel() >= batch_size * num_kv_heads
    assert num_splits == 1 or workspace.logsumexp.numel() >= batch_size * num_splits * num_heads
    if batch_size == 0:
        return
    tiling = DecodeTiling() if tiling is None else tiling
    # Without rotation the three arguments are never read.
    positions, table, slot_mapping = (query, query, query) if rotary is None else rotary
    lanes = WARP_LANES * tiling.num_warps
    num_lanes = num_splits * num_kv_heads * batch_size * lanes
    upcoming = Upcoming(query, 0) if upcoming is None else upcoming
    decode_kernel[(num_splits, num_kv_heads, batch_size)](
        query,
        positions,
        table,
        slot_mapping,
        key_cache,
        value_cache,
        block_table,
        context_lengths,
        workspace.weighted,
        workspace.logsumexp,
        workspace.arrivals,
        upcoming.weight,
        out,
        log2_scale(head_dim),
        query.stride(0),
        positions.stride(0),
        block_table.stride(0),
        num_splits,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        BLOCK_GROUP=max(_MIN_GROUP, power_of_two_at_least(num_heads // num_kv_heads)),
        BLOCK_TOKENS=tiling.block_tokens,
        SECTION_TIME=sections[0],
        SECTION_HEIGHT=sections[1],
        HAS_ROTARY=rotary is not None,
        HAS_MERGE_KERNEL=num_splits > 1 and not is_merged_by_last,
        PRECISION=dot_precision(out.dtype),
        LANES=lanes,
        UPCOMING_BYTES=upcoming.lane_bytes(num_lanes),
        PDL=pdl,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **launch_options(pdl),
    )
    if num_splits == 1 or is_merged_by_last:
        return
    launch_merge(workspace, out, pdl=pdl)


def launch_merge(workspace: DecodeWorkspace, out: Tensor, *, pdl: bool) -> None:
    """Merges what the splits of each row of `out` [B, num_heads, head_dim] left in the workspace."""
    batch_size, num_heads, head_dim = out.shape
    merge_kernel[(num_heads, batch_size)](
        workspace.weighted,
        workspace.logsumexp,
        out,
        workspace.num_splits,
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        BLOCK_SPLITS=power_of_two_at_least(workspace.num_splits),
        PDL=pdl,
        num_warps=1 if workspace.num_splits <= _MAX_SPLITS_OF_ONE_WARP else 4,
        **launch_options(pdl),
    )
