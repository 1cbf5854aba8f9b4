"""The inputs of the graph beside the patches: the order of the cells, the rotation, and the padded segments."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision.layout import LayoutCache
from triptych.models.qwen2_5_vl.vision.segments import Segments

# Added to the scores of padding: small enough that its softmax is 0, and a number that float16 has.
PADDING_BIAS = -30_000.0


@dataclass(frozen=True)
class PaddedSegments:
    """Segments as rows of a batch, each padded to `length`.

    `rows` [segments, length] int32: the patch at each slot; 0 on padding. `bias` [segments, length]: 0, PADDING_BIAS on
    padding. `slots` [num_patches] int32: the slot of each patch, counted through all segments.
    """

    rows: Tensor
    bias: Tensor
    slots: Tensor


def padded_segments(segments: Segments, length: int, num_patches: int, dtype: torch.dtype) -> PaddedSegments:
    """All on the device of the segments, and without waiting for it. `length` is at least that of each segment."""
    starts = segments.cu_seqlens[:-1]
    lengths = segments.cu_seqlens.diff()
    places = torch.arange(length, dtype=torch.int32, device=starts.device)
    is_patch = places < lengths[:, None]
    rows = torch.where(is_patch, starts[:, None] + places, 0)
    bias = torch.where(is_patch, 0.0, PADDING_BIAS).to(dtype)
    # A patch of segment i stands i * length behind the start of the batch, and where it stood in its segment.
    segment_starts = torch.arange(starts.shape[0], dtype=torch.int32, device=starts.device) * length
    shifts = torch.repeat_interleave(segment_starts - starts, lengths, output_size=num_patches)
    slots = torch.arange(num_patches, dtype=torch.int32, device=starts.device) + shifts
    return PaddedSegments(rows, bias, slots)


def graph_inputs(
    patches: Tensor, grids: Sequence[Grid], layouts: LayoutCache, config: VisionConfig, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Every input of the graph by name, for patches [num_patches, patch_dim] of `grids` in turn."""
    num_patches = patches.shape[0]
    layout = layouts.packed(grids, patches.device)
    windows = padded_segments(layout.windows, window_length(config), num_patches, dtype)
    frames = padded_segments(layout.frames, layout.frames.max_length, num_patches, dtype)
    return {
        "patches": patches.to(dtype),
        "window_order": layout.window_order.to(torch.int32),
        "original_order": layout.original_order.to(torch.int32),
        "cos": layout.cos,
        "sin": layout.sin,
        "window_rows": windows.rows,
        "window_bias": windows.bias,
        "window_slots": windows.slots,
        "frame_rows": frames.rows,
        "frame_bias": frames.bias,
        "frame_slots": frames.slots,
    }


def window_length(config: VisionConfig) -> int:
    """Patches of a whole window."""
    return window_side(config) ** 2


def window_side(config: VisionConfig) -> int:
    """Patches along one side of a whole window, cells being whole."""
    return config.window_size // config.spatial_merge_size // config.patch_size * config.spatial_merge_size
