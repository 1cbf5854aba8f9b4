"""The order of patches that the vision tower reads, and what images and videos share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.errors import InvalidRequest
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.processing.resize import resize_frames

NUM_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class PatchFormat:
    """Pixel limits per frame, patch sizes in pixels (frames for the temporal one), and the colour normalisation.

    `mean` and `std` are per channel, for values scaled to 0..1.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def patch_dim(self) -> int:
        """Values of one patch."""
        return NUM_CHANNELS * self.temporal_patch_size * self.patch_size**2

    @property
    def factor(self) -> int:
        """Frame sides are multiples of this many pixels."""
        return self.patch_size * self.merge_size

    def grid_of_size(self, num_frames: int, height: int, width: int) -> Grid:
        """The grid of frames that have their final size; a last temporal step is filled up."""
        num_steps = -(-num_frames // self.temporal_patch_size)
        return Grid(num_steps, height // self.patch_size, width // self.patch_size)

    def patches_of_size(self, frames: Tensor, height: int, width: int) -> Tensor:
        """Resizes uint8 [T, 3, H, W] to height x width and cuts patches: float32 [num_patches, patch_dim].

        Patches come step by step, in cells of merge x merge, row by row; the values of one patch are ordered channel,
        frame, row, column. Too few frames for the last step repeat the last frame.
        """
        if frames.ndim != 4 or frames.shape[0] < 1 or frames.shape[1] != NUM_CHANNELS or frames.dtype != torch.uint8:
            raise InvalidRequest(
                f"frames are {frames.dtype} {list(frames.shape)}, "
                f"expected uint8 [frames, {NUM_CHANNELS}, height, width]",
                field="media",
            )
        return self.cut_patches(resize_frames(frames, height, width))

    def cut_patches(self, frames: Tensor) -> Tensor:
        """`patches_of_size` of frames that have their final size."""
        height, width = frames.shape[-2:]
        num_missing = -frames.shape[0] % self.temporal_patch_size
        if num_missing:
            frames = torch.cat([frames, frames[-1:].expand(num_missing, -1, -1, -1)])
        grid = self.grid_of_size(frames.shape[0], height, width)
        merge, patch = self.merge_size, self.patch_size
        cells = frames.reshape(
            grid.t, self.temporal_patch_size, NUM_CHANNELS, grid.h // merge, merge, patch, grid.w // merge, merge, patch
        )
        # To (step, cell row, cell column, row in cell, column in cell) x (channel, frame, row, column), still in
        # uint8: a quarter of the bytes to move.
        ordered = cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid.num_patches, NUM_CHANNELS, -1)
        mean = torch.tensor(self.mean, device=frames.device).mul_(255)[:, None]
        std = torch.tensor(self.std, device=frames.device).mul_(255)[:, None]
        return ordered.float().sub_(mean).div_(std).flatten(1)
