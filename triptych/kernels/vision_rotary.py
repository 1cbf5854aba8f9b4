# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""Rotation of the vision tower's queries and keys where they are. Floor: bytes, 4 * T * hidden elements."""

import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import launch_options, power_of_two_at_least, wait_for_previous
from triptych.kernels.vision_blocks import rotate_pairs

_BLOCK_ROWS = 2


def rotate_query_and_key(qkv: Tensor, cos: Tensor, sin: Tensor, head_dim: int, *, pdl: bool = False) -> None:
    """Turns the first two thirds of each row of `qkv` [T, 3 * hidden], heads with interleaved pairs, in place.

    cos, sin: float32 [T, head_dim / 2].
    """
    num_rows, width = qkv.shape
    assert qkv.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
    _rotate_kernel[(triton.cdiv(num_rows, _BLOCK_ROWS),)](
        qkv,
        cos,
        sin,
        num_rows,
        WIDTH=width,
        HALF=head_dim // 2,
        BLOCK_ROWS=_BLOCK_ROWS,
        BLOCK=power_of_two_at_least(width // 3),
        PDL=pdl,
        num_warps=4,
        **launch_options(pdl),
    )


@triton.jit(do_not_specialize=["num_rows"])
def _rotate_kernel(
    qkv,
    cos,
    sin,
    num_rows,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_previous(PDL)
    HIDDEN: tl.constexpr = WIDTH // 3
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = (rows < num_rows)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    pairs = tl.arange(0, BLOCK // 2)[None, :]
    is_pair = is_row & (pairs < HIDDEN // 2)
    # The query's pairs turn like the key's: of each head the same.
    angles = rows[:, None] * HALF + pairs % HALF
    cosines = tl.load(cos + angles, mask=is_pair, other=0.0)
    sines = tl.load(sin + angles, mask=is_pair, other=0.0)
    for part in tl.static_range(2):
        states = qkv + rows[:, None] * WIDTH + part * HIDDEN + columns
        mask = is_row & (columns < HIDDEN)
        values = tl.load(states, mask=mask, other=0.0)
        tl.store(states, rotate_pairs(values, cosines, sines, BLOCK_ROWS, BLOCK), mask=mask)
