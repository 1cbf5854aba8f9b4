# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""Attention over whole frames in the vision tower, all frames of a batch in one launch.

Floor: 4 * hidden * length^2 operations a frame.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import launch_options, wait_for_previous
from triptych.kernels.vision_blocks import head_blocks, load_block, store_block
from triptych.kernels.vision_tiles import TILE_ROWS
from triptych.kernels.vision_window_attention import LOG2_E


@dataclass(frozen=True)
class FullTiling:
    """Keys that a program takes at a time, its warps, and how many steps are loaded ahead. is_peeled: the last keys,
    which may be fewer, are taken before all others, so that the loop needs no mask."""

    block_keys: int = 64
    num_warps: int = 8
    num_stages: int = 3
    is_peeled: bool = True


def full_attention(
    qkv: Tensor,
    tiles: Tensor,
    head_dim: int,
    *,
    out: Tensor,
    tiling: FullTiling | None = None,
    pdl: bool = False,
) -> Tensor:
    """Attention inside each segment to `out` [T, hidden].

    qkv: [T, 3 * hidden], query and key rotated. tiles: int32 [num_tiles, 3], see `frame_tiles`; one whose
    segment is empty does nothing. Rows outside of all tiles are not written.
    """
    tiling = tiling or FullTiling()
    hidden = qkv.shape[1] // 3
    num_heads = hidden // head_dim
    assert qkv.is_contiguous() and out.is_contiguous() and tiles.is_contiguous()
    low, high = head_blocks(head_dim)
    _full_attention_kernel[(len(tiles) * num_heads,)](
        qkv,
        tiles,
        out,
        head_dim**-0.5 * LOG2_E,
        len(tiles),
        HIDDEN=hidden,
        HEAD_DIM=head_dim,
        LOW=low,
        HIGH=high,
        BLOCK_ROWS=TILE_ROWS,
        BLOCK_KEYS=tiling.block_keys,
        IS_PEELED=tiling.is_peeled,
        PDL=pdl,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **launch_options(pdl),
    )
    return out


@triton.jit
def _attend(
    query_low,
    query_high,
    key,
    value,
    first,
    end,
    scale,
    highest,
    total,
    sum_low,
    sum_high,
    HIDDEN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """One step of the running softmax, in powers of two, over the keys from `first` on."""
    index = first + tl.arange(0, BLOCK_KEYS)
    is_row = index < end
    rows = index.to(tl.int64)
    key_low = load_block(key, rows, is_row, 3 * HIDDEN, 0, LOW, HEAD_DIM, IS_WHOLE)
    scores = tl.dot(query_low, tl.trans(key_low), input_precision="ieee")
    if HIGH:
        key_high = load_block(key, rows, is_row, 3 * HIDDEN, LOW, HIGH, HEAD_DIM, IS_WHOLE)
        scores = tl.dot(query_high, tl.trans(key_high), scores, input_precision="ieee")
    if not IS_WHOLE:
        scores = tl.where(is_row[None, :], scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - new_highest[:, None])
    correction = tl.exp2(highest - new_highest)
    total = total * correction + tl.sum(weights, axis=1)
    value_low = load_block(value, rows, is_row, 3 * HIDDEN, 0, LOW, HEAD_DIM, IS_WHOLE)
    weights = weights.to(value_low.dtype)
    sum_low = tl.dot(weights, value_low, sum_low * correction[:, None], input_precision="ieee")
    if HIGH:
        value_high = load_block(value, rows, is_row, 3 * HIDDEN, LOW, HIGH, HEAD_DIM, IS_WHOLE)
        sum_high = tl.dot(weights, value_high, sum_high * correction[:, None], input_precision="ieee")
    return new_highest, total, sum_low, sum_high


@triton.jit(do_not_specialize=["num_tiles"])
def _full_attention_kernel(
    qkv,
    tiles,
    out,
    scale,
    num_tiles,
    HIDDEN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    IS_PEELED: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_previous(PDL)
    tile = tl.program_id(0) % num_tiles
    head = tl.program_id(0) // num_tiles
    start = tl.load(tiles + tile * 3)
    first_row = tl.load(tiles + tile * 3 + 1)
    end = tl.load(tiles + tile * 3 + 2)
    if end > start:
        index = first_row + tl.arange(0, BLOCK_ROWS)
        is_row = index < end
        rows = index.to(tl.int64)
        query = qkv + head * HEAD_DIM
        key = query + HIDDEN
        value = key + HIDDEN
        query_low = load_block(query, rows, is_row, 3 * HIDDEN, 0, LOW, HEAD_DIM)
        query_high = query_low
        if HIGH:
            query_high = load_block(query, rows, is_row, 3 * HIDDEN, LOW, HIGH, HEAD_DIM)
        highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        sum_low = tl.zeros([BLOCK_ROWS, LOW], tl.float32)
        sum_high = tl.zeros([BLOCK_ROWS, HIGH if HIGH else 16], tl.float32)
        loop_end = end
        # No step in a branch after the loop: its results were wrong on an H200 (Triton 3.6).
        if IS_PEELED:
            loop_end = start + (end - start - 1) // BLOCK_KEYS * BLOCK_KEYS
            highest, total, sum_low, sum_high = _attend(
                query_low, query_high, key, value, loop_end, end, scale, highest, total, sum_low, sum_high,
                HIDDEN, HEAD_DIM, LOW, HIGH, BLOCK_KEYS, False,
            )  # fmt: skip
        for first in range(start, loop_end, BLOCK_KEYS):
            highest, total, sum_low, sum_high = _attend(
                query_low, query_high, key, value, first, end, scale, highest, total, sum_low, sum_high,
                HIDDEN, HEAD_DIM, LOW, HIGH, BLOCK_KEYS, IS_PEELED,
            )  # fmt: skip
        inverse_total = (1.0 / total)[:, None]
        store_block(out + head * HEAD_DIM, sum_low * inverse_total, rows, is_row, HIDDEN, 0, LOW, HEAD_DIM)
        if HIGH:
            store_block(out + head * HEAD_DIM, sum_high * inverse_total, rows, is_row, HIDDEN, LOW, HIGH, HEAD_DIM)
