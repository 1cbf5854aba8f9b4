"""Videos: which frames are taken, and from decoded frames to patches."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from triptych.errors import InvalidRequest
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.processing.patches import PatchFormat
from triptych.models.qwen2_5_vl.processing.resize import smart_resize
from triptych.models.qwen2_5_vl.processing.settings import (
    IMAGE_NAME,
    VIDEO_NAME,
    patch_format_fields,
    read_settings,
)

# What transformers' Qwen2-VL video processor takes for a file without limits.
DEFAULT_PIXELS = (128 * 28 * 28, 28 * 28 * 768)
# The rate that Qwen2.5-VL was trained at; the published files name none.
DEFAULT_FPS = 2.0
# With `cap_pixels_per_frame`: the share of `max_video_tokens` that pixels may take, and how far over the smallest
# frame the cap stays (as in transformers and qwen-vl-utils).
VIDEO_TOKEN_SHARE = 0.9
MIN_PIXELS_MARGIN = 1.05


@dataclass(frozen=True, kw_only=True)
class VideoProcessing(PatchFormat):
    """Processing of videos. `fps` is the sampling rate; the pixel limits hold for each frame.

    With `cap_pixels_per_frame` all frames together stay within `max_video_tokens`.
    """

    fps: float
    min_frames: int
    max_frames: int
    cap_pixels_per_frame: bool
    max_video_tokens: int

    @classmethod
    def from_folder(cls, path: Path) -> "VideoProcessing":
        """Reads processor_config.json, video_preprocessor_config.json, or preprocessor_config.json where a folder has
        settings for pictures alone, as transformers does; ModelError when there is none of them."""
        settings = read_settings(path, "video_processor", [VIDEO_NAME, IMAGE_NAME])
        return cls(
            **patch_format_fields(settings, DEFAULT_PIXELS),
            fps=float(settings.get("fps") or DEFAULT_FPS),
            min_frames=int(settings.get("min_frames") or 4),
            max_frames=int(settings.get("max_frames") or 768),
            cap_pixels_per_frame=bool(settings.get("cap_pixels_per_frame")),
            max_video_tokens=int(settings.get("max_video_tokens") or 128_000),
        )

    def sample_frames(self, num_frames: int, frames_per_second: float) -> list[int]:
        """Indices of the frames to take from a video of `num_frames` at `frames_per_second`.

        Evenly spread, `fps` a second, between min_frames and max_frames, a multiple of the temporal patch size; equal
        to `Qwen2VLVideoProcessor.sample_frames`, but for the odd frame that its rounding sometimes adds past the end. A
        video shorter than one temporal patch is taken whole.
        """
        if num_frames < 1:
            raise InvalidRequest(f"the video has {num_frames} frames, expected at least 1", field="media")
        if not (math.isfinite(frames_per_second) and frames_per_second > 0):
            raise InvalidRequest(f"the video has {frames_per_second} frames per second, expected > 0", field="media")
        step = self.temporal_patch_size
        if num_frames < step:
            return list(range(num_frames))
        max_frames = min(self.max_frames, num_frames) // step * step
        wanted = min(max(num_frames / frames_per_second * self.fps, self.min_frames), max_frames, num_frames)
        num_sampled = max(step, math.floor(wanted / step) * step)
        # torch's float32 ranges decide the reference's choice where a position falls near a whole number.
        indices = torch.arange(0, num_frames, num_frames / num_sampled).int().tolist()
        return [min(index, num_frames - 1) for index in indices[:num_sampled]]

    def second_per_grid_t(self, num_sampled: int, num_frames: int, frames_per_second: float) -> float:
        """Seconds that one temporal step covers when `num_sampled` of `num_frames` frames were taken."""
        sampled_fps = num_sampled / num_frames * frames_per_second
        return self.temporal_patch_size / sampled_fps

    def video_grid(self, num_sampled: int, height: int, width: int) -> Grid:
        """The grid of `num_sampled` frames of height x width pixels."""
        return self.grid_of_size(num_sampled, *self._resized(num_sampled, height, width))

    def patchify(self, frames: Tensor) -> Tensor:
        """The sampled frames, uint8 [T, 3, H, W], to float32 [num_patches, patch_dim] in the order of `video_grid`."""
        return self.patches_of_size(frames, *self._resized(frames.shape[0], frames.shape[-2], frames.shape[-1]))

    def _resized(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        max_pixels = self.max_pixels
        if self.cap_pixels_per_frame:
            budget = int(self.max_video_tokens * self.factor**2 * VIDEO_TOKEN_SHARE)
            share = budget * self.temporal_patch_size // num_frames
            max_pixels = max(min(max_pixels, share), int(self.min_pixels * MIN_PIXELS_MARGIN))
        return smart_resize(height, width, self.factor, self.min_pixels, max_pixels)
