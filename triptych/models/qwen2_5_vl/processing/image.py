"""Pictures: from a decoded image to patches."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.processing.patches import PatchFormat
from triptych.models.qwen2_5_vl.processing.resize import smart_resize
from triptych.models.qwen2_5_vl.processing.settings import IMAGE_NAME, patch_format_fields, read_settings

# What transformers' Qwen2-VL image processor takes for a file without limits.
DEFAULT_PIXELS = (56 * 56, 28 * 28 * 1280)


@dataclass(frozen=True, kw_only=True)
class ImageProcessing(PatchFormat):
    """Processing of single pictures."""

    @classmethod
    def from_folder(cls, path: Path) -> "ImageProcessing":
        """Reads processor_config.json or preprocessor_config.json; ModelError when there is neither."""
        settings = read_settings(path, "image_processor", [IMAGE_NAME])
        return cls(**patch_format_fields(settings, DEFAULT_PIXELS))

    def image_grid(self, height: int, width: int) -> Grid:
        """The grid of a picture of height x width pixels; InvalidRequest for an impossible shape."""
        return self.grid_of_size(1, *self._resized(height, width))

    def patchify(self, frames: Tensor) -> Tensor:
        """One picture, uint8 [1, 3, H, W], to float32 [num_patches, patch_dim] in the order of its `image_grid`."""
        return self.patches_of_size(frames, *self._resized(frames.shape[-2], frames.shape[-1]))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        return smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels)
