# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""Decoded frames to patches: bicubic resize with antialias, normalise, and Qwen's patch order, in two launches.

Columns first, into uint8 as torch's kernel does, then rows together with all the rest, straight into the packed buffer.
Bit for bit `resize_and_patchify_reference`. Floor: bytes, of which the patches are the most (4 for each byte of a still
picture in bfloat16).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import power_of_two_at_least
from triptych.kernels.patchify_reference import PatchJob
from triptych.media.orientation import PixelWalk, upright_walk
from triptych.models.qwen2_5_vl.processing.patches import NUM_CHANNELS
from triptych.models.qwen2_5_vl.processing.taps import ResizeTaps

_ROWS, _COLUMNS = 8, 128


def resize_and_patchify(frames: Tensor, job: PatchJob, out: Tensor) -> None:
    """Frames uint8 [T, 3, H, W] as stored to `out` [num_patches, patch_dim], float32 or bfloat16. Waits for nothing."""
    job.check(frames, out)
    num_frames, _, height, width = frames.shape
    walk, plane_size = upright_walk(height, width, job.orientation), height * width
    if job.columns.in_size != job.columns.out_size:
        frames = _resize_columns(frames, walk, job.columns)
        plane_size = walk.height * job.columns.out_size
        walk = PixelWalk(walk.height, job.columns.out_size, 0, job.columns.out_size, 1)
    patch_format = job.format
    grid = patch_format.grid_of_size(num_frames, job.rows.out_size, job.columns.out_size)
    _patchify_kernel[(grid.num_patches, NUM_CHANNELS)](
        frames, out, job.rows.starts, job.rows.weights, job.colors,
        num_frames, plane_size, walk.offset, walk.row_stride, walk.column_stride,
        job.rows.in_size, job.rows.out_size, job.rows.num_taps, job.rows.precision, grid.h, grid.w,
        PATCH=patch_format.patch_size, MERGE=patch_format.merge_size, TEMPORAL=patch_format.temporal_patch_size,
        IS_STILL=num_frames == 1, BLOCK=power_of_two_at_least(patch_format.patch_size**2), num_warps=2,
    )  # fmt: skip


def _resize_columns(frames: Tensor, walk: PixelWalk, taps: ResizeTaps) -> Tensor:
    """Upright uint8 [T, 3, H, out_size]."""
    num_frames = frames.shape[0]
    out = torch.empty((num_frames, NUM_CHANNELS, walk.height, taps.out_size), dtype=torch.uint8, device=frames.device)
    num_rows = num_frames * NUM_CHANNELS * walk.height
    _resize_columns_kernel[(triton.cdiv(num_rows, _ROWS), triton.cdiv(taps.out_size, _COLUMNS))](
        frames, out, taps.starts, taps.weights,
        num_rows, walk.height, walk.height * walk.width, walk.offset, walk.row_stride, walk.column_stride,
        taps.in_size, taps.out_size, taps.num_taps, taps.precision,
        ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return out


# Sizes are not specialized: each mixture of odd and even ones would compile a kernel of its own, while requests wait.
@triton.jit(
    do_not_specialize=[
        "num_rows", "height", "plane_size", "offset", "row_stride", "column_stride", "in_size", "out_size", "num_taps",
        "precision",
    ],
    do_not_specialize_on_alignment=["frames"],
)  # fmt: skip
def _resize_columns_kernel(
    frames, out, starts, weights,
    num_rows, height, plane_size, offset, row_stride, column_stride, in_size, out_size, num_taps, precision,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = rows < num_rows, columns < out_size
    is_inside = is_row[:, None] & is_column[None, :]
    row_begin = (rows // height).to(tl.int64) * plane_size + (rows % height) * row_stride + offset
    first = tl.load(starts + columns, mask=is_column, other=0)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32) + ((1 << precision) >> 1)
    for tap in range(num_taps):
        weight = tl.load(weights + tap * out_size + columns, mask=is_column, other=0)
        position = tl.minimum(first + tap, in_size - 1) * column_stride
        pixels = tl.load(frames + row_begin[:, None] + position[None, :], mask=is_inside, other=0)
        total += pixels.to(tl.int32) * weight[None, :]
    resized = tl.minimum(tl.maximum(total >> precision, 0), 255).to(tl.uint8)
    tl.store(out + rows.to(tl.int64)[:, None] * out_size + columns[None, :], resized, mask=is_inside)


@triton.jit(
    do_not_specialize=[
        "num_frames", "plane_size", "offset", "row_stride", "column_stride", "in_size", "out_size", "num_taps",
        "precision", "grid_h", "grid_w",
    ],
    do_not_specialize_on_alignment=["frames"],
)  # fmt: skip
def _patchify_kernel(
    frames, out, starts, weights, colors,
    num_frames, plane_size, offset, row_stride, column_stride, in_size, out_size, num_taps, precision, grid_h, grid_w,
    PATCH: tl.constexpr, MERGE: tl.constexpr, TEMPORAL: tl.constexpr, IS_STILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One channel of one patch, in all its frames. A still picture's frames are one frame, computed once."""
    patch, channel = tl.program_id(0), tl.program_id(1)
    step, in_step = patch // (grid_h * grid_w), patch % (grid_h * grid_w)
    cell, in_cell = in_step // (MERGE * MERGE), in_step % (MERGE * MERGE)
    patch_row = cell // (grid_w // MERGE) * MERGE + in_cell // MERGE
    patch_column = cell % (grid_w // MERGE) * MERGE + in_cell % MERGE
    pixel = tl.arange(0, BLOCK)
    is_inside = pixel < PATCH * PATCH
    row, column = patch_row * PATCH + pixel // PATCH, patch_column * PATCH + pixel % PATCH
    first = tl.load(starts + row, mask=is_inside, other=0)
    mean, deviation = tl.load(colors + channel), tl.load(colors + 3 + channel)
    values_out = out + (patch.to(tl.int64) * 3 + channel) * (TEMPORAL * PATCH * PATCH) + pixel
    for number in tl.static_range(1 if IS_STILL else TEMPORAL):
        frame = tl.minimum(step * TEMPORAL + number, num_frames - 1)
        begin = (frame * 3 + channel).to(tl.int64) * plane_size + offset
        total = tl.zeros((BLOCK,), dtype=tl.int32) + ((1 << precision) >> 1)
        for tap in range(num_taps):
            weight = tl.load(weights + tap * out_size + row, mask=is_inside, other=0)
            position = tl.minimum(first + tap, in_size - 1) * row_stride + column * column_stride
            total += tl.load(frames + begin + position, mask=is_inside, other=0).to(tl.int32) * weight
        resized = tl.minimum(tl.maximum(total >> precision, 0), 255).to(tl.float32)
        normalized = tl.div_rn(resized - mean, deviation).to(out.dtype.element_ty)
        for copy in tl.static_range(TEMPORAL if IS_STILL else 1):
            tl.store(values_out + (number + copy) * (PATCH * PATCH), normalized, mask=is_inside)
