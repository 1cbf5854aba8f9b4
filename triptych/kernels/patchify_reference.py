"""Resizing, normalising and cutting into patches in plain torch: what `patchify` computes, and what runs where Triton
does not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.media.orientation import UPRIGHT, upright_walk
from triptych.models.qwen2_5_vl.processing.patches import NUM_CHANNELS, PatchFormat
from triptych.models.qwen2_5_vl.processing.taps import ResizeTaps


@dataclass(frozen=True)
class PatchJob:
    """How frames become patches.

    `columns` and `rows` bring the upright frame to its final size; `colors` float32 [2, 3] holds mean and deviation of
    each channel for values of 0..255. All tables lie on the frames' device. `orientation` is EXIF's.
    """

    format: PatchFormat
    columns: ResizeTaps
    rows: ResizeTaps
    colors: Tensor
    orientation: int = UPRIGHT

    def num_patches(self, num_frames: int) -> int:
        """Patches that `num_frames` frames make."""
        return self.format.grid_of_size(num_frames, self.rows.out_size, self.columns.out_size).num_patches

    def check(self, frames: Tensor, out: Tensor) -> None:
        """Asserts that frames uint8 [T, 3, H, W], contiguous and as stored, and `out` [num_patches, patch_dim] fit."""
        num_frames, num_channels, height, width = frames.shape
        walk = upright_walk(height, width, self.orientation)
        assert frames.dtype == torch.uint8 and frames.is_contiguous() and num_channels == NUM_CHANNELS
        assert (walk.height, walk.width) == (self.rows.in_size, self.columns.in_size)
        assert out.shape == (self.num_patches(num_frames), self.format.patch_dim) and out.is_contiguous()
        assert self.columns.out_size % self.format.factor == self.rows.out_size % self.format.factor == 0


def color_table(patch_format: PatchFormat, device: torch.device) -> Tensor:
    """`PatchJob.colors`."""
    colors = torch.tensor([patch_format.mean, patch_format.std]).mul_(255)
    return colors.to(device)


def resize_and_patchify_reference(frames: Tensor, job: PatchJob, out: Tensor) -> None:
    """Frames uint8 [T, 3, H, W] as stored to `out` [num_patches, patch_dim], float32 or bfloat16."""
    job.check(frames, out)
    walk = upright_walk(frames.shape[2], frames.shape[3], job.orientation)
    rows = torch.arange(walk.height, device=frames.device) * walk.row_stride
    columns = torch.arange(walk.width, device=frames.device) * walk.column_stride
    upright = frames.flatten(2)[..., walk.offset + rows[:, None] + columns]
    wide = _resize_last(upright, job.columns)
    resized = _resize_last(wide.transpose(2, 3), job.rows).transpose(2, 3)
    out.copy_(job.format.cut_patches(resized))


def _resize_last(pixels: Tensor, taps: ResizeTaps) -> Tensor:
    """uint8 [..., in_size] to uint8 [..., out_size]."""
    total = torch.full((1,), (1 << taps.precision) >> 1, dtype=torch.int32, device=pixels.device)
    for tap, weights in enumerate(taps.weights):
        positions = (taps.starts + tap).clamp_(max=taps.in_size - 1)
        total = total + pixels[..., positions].int() * weights
    return (total >> taps.precision).clamp_(0, 255).to(torch.uint8)
