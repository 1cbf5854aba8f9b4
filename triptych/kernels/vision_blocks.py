# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""What the kernels of the vision tower share.

A head of 80 is no power of two: its tiles are two blocks, LOW (64) and HIGH (16), so that the matrix units compute no
padding. Query and key keep the two values that turn together side by side: `interleaved_pairs` in
`triptych.kernels.vision_reference`.
"""

import triton
import triton.language as tl

# The matrix units want at least so many columns.
_MIN_BLOCK = 16


def head_blocks(head_dim: int) -> tuple[int, int]:
    """(LOW, HIGH): the largest power of two in `head_dim`, and the power of two that holds the rest; 0 for none."""
    low = 1 << (head_dim.bit_length() - 1)
    rest = head_dim - low
    assert low >= _MIN_BLOCK and head_dim % 4 == 0, f"a head of {head_dim} values"
    return low, max(_MIN_BLOCK, 1 << (rest - 1).bit_length()) if rest else 0


@triton.jit
def load_block(
    pointer,
    rows,
    is_row,
    row_stride,
    FIRST: tl.constexpr,
    SIZE: tl.constexpr,
    END: tl.constexpr,
    IS_WHOLE: tl.constexpr = False,
):
    """[rows, SIZE] of the columns from FIRST on; rows that are not, and columns from END on, are zero.

    IS_WHOLE: all rows are.
    """
    columns = FIRST + tl.arange(0, SIZE)
    pointers = pointer + rows[:, None] * row_stride + columns[None, :]
    if FIRST + SIZE > END:
        values = tl.load(pointers, mask=is_row[:, None] & (columns < END)[None, :], other=0.0)
    elif IS_WHOLE:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=is_row[:, None], other=0.0)
    return values


@triton.jit
def store_block(pointer, values, rows, is_row, row_stride, FIRST: tl.constexpr, SIZE: tl.constexpr, END: tl.constexpr):
    columns = FIRST + tl.arange(0, SIZE)
    mask = is_row[:, None]
    if FIRST + SIZE > END:
        mask = mask & (columns < END)[None, :]
    tl.store(pointer + rows[:, None] * row_stride + columns[None, :], values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def rotate_pairs(values, cos, sin, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """[ROWS, SIZE] of interleaved pairs turned in float32 by [ROWS, SIZE / 2], rounded to the dtype of `values`."""
    first, second = tl.split(tl.reshape(values.to(tl.float32), [ROWS, SIZE // 2, 2]))
    rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
    return tl.reshape(rotated, [ROWS, SIZE]).to(values.dtype)
