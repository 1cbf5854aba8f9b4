# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""Rotation and attention of the vision tower's windows in one kernel: a window of one head is one tile.

Floor: bytes. The packed qkv is read once and the result written once, 4 * T * hidden elements.
"""

from dataclasses import dataclass
from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import launch_options, power_of_two_at_least, wait_for_previous
from triptych.kernels.vision_blocks import head_blocks, load_block, rotate_pairs, store_block

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class WindowTiling:
    """The most heads that a program takes one after the other, its warps, and in how many stages they are loaded."""

    heads_per_program: int = 4
    num_warps: int = 4
    num_stages: int = 2


def window_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    head_dim: int,
    *,
    out: Tensor,
    tiling: WindowTiling | None = None,
    pdl: bool = False,
) -> Tensor:
    """Attention inside each window to `out` [T, hidden].

    qkv: [T, 3 * hidden] as projected, query and key heads with interleaved pairs. cos, sin: float32 [T, head_dim / 2].
    cu_seqlens: int32 [windows + 1]; windows may be empty, and rows outside of all are not written. max_length: of a
    window.
    """
    tiling = tiling or WindowTiling()
    hidden = qkv.shape[1] // 3
    num_heads = hidden // head_dim
    heads_per_program = gcd(num_heads, tiling.heads_per_program)
    assert qkv.is_contiguous() and out.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
    low, high = head_blocks(head_dim)
    _window_attention_kernel[((len(cu_seqlens) - 1) * (num_heads // heads_per_program),)](
        qkv,
        cos,
        sin,
        cu_seqlens,
        out,
        head_dim**-0.5 * LOG2_E,
        HIDDEN=hidden,
        HEAD_DIM=head_dim,
        LOW=low,
        HIGH=high,
        BLOCK=max(16, power_of_two_at_least(max_length)),
        HEADS_PER_PROGRAM=heads_per_program,
        PDL=pdl,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **launch_options(pdl),
    )
    return out


@triton.jit
def _window_attention_kernel(
    qkv,
    cos,
    sin,
    cu_seqlens,
    out,
    scale,
    HIDDEN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS_PER_PROGRAM: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_previous(PDL)
    NUM_GROUPS: tl.constexpr = HIDDEN // HEAD_DIM // HEADS_PER_PROGRAM
    HALF: tl.constexpr = HEAD_DIM // 2
    window = tl.program_id(0) // NUM_GROUPS
    first_head = (tl.program_id(0) % NUM_GROUPS) * HEADS_PER_PROGRAM
    start = tl.load(cu_seqlens + window)
    length = tl.load(cu_seqlens + window + 1) - start
    if length > 0:
        index = tl.arange(0, BLOCK)
        is_row = index < length
        rows = (start + index).to(tl.int64)
        cos_low = load_block(cos, rows, is_row, HALF, 0, LOW // 2, HALF)
        sin_low = load_block(sin, rows, is_row, HALF, 0, LOW // 2, HALF)
        if HIGH:
            cos_high = load_block(cos, rows, is_row, HALF, LOW // 2, HIGH // 2, HALF)
            sin_high = load_block(sin, rows, is_row, HALF, LOW // 2, HIGH // 2, HALF)
        for head in range(first_head, first_head + HEADS_PER_PROGRAM):
            query = qkv + head * HEAD_DIM
            key = query + HIDDEN
            value = key + HIDDEN
            query_low = rotate_pairs(
                load_block(query, rows, is_row, 3 * HIDDEN, 0, LOW, HEAD_DIM), cos_low, sin_low, BLOCK, LOW
            )
            key_low = rotate_pairs(
                load_block(key, rows, is_row, 3 * HIDDEN, 0, LOW, HEAD_DIM), cos_low, sin_low, BLOCK, LOW
            )
            value_low = load_block(value, rows, is_row, 3 * HIDDEN, 0, LOW, HEAD_DIM)
            scores = tl.dot(query_low, tl.trans(key_low), input_precision="ieee")
            if HIGH:
                query_high = rotate_pairs(
                    load_block(query, rows, is_row, 3 * HIDDEN, LOW, HIGH, HEAD_DIM), cos_high, sin_high, BLOCK, HIGH
                )
                key_high = rotate_pairs(
                    load_block(key, rows, is_row, 3 * HIDDEN, LOW, HIGH, HEAD_DIM), cos_high, sin_high, BLOCK, HIGH
                )
                value_high = load_block(value, rows, is_row, 3 * HIDDEN, LOW, HIGH, HEAD_DIM)
                scores = tl.dot(query_high, tl.trans(key_high), scores, input_precision="ieee")
            scores = tl.where(is_row[None, :], scores * scale, float("-inf"))
            weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
            inverse_total = 1.0 / tl.sum(weights, axis=1)
            weights = weights.to(value_low.dtype)
            attended = tl.dot(weights, value_low, input_precision="ieee") * inverse_total[:, None]
            store_block(out + head * HEAD_DIM, attended, rows, is_row, HIDDEN, 0, LOW, HEAD_DIM)
            if HIGH:
                attended_high = tl.dot(weights, value_high, input_precision="ieee") * inverse_total[:, None]
                store_block(out + head * HEAD_DIM, attended_high, rows, is_row, HIDDEN, LOW, HIGH, HEAD_DIM)
