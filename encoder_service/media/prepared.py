"""What a media thread hands to the device thread."""

from dataclasses import dataclass

from torch import Tensor

from triptych.models.qwen2_5_vl.grid import Grid


@dataclass(frozen=True)
class FinishedPatches:
    """Patches float32 [num_patches, patch_dim] on the CPU: nothing is left to do but to move them."""

    patches: Tensor


@dataclass(frozen=True)
class DecodedFrames:
    """Frames uint8 [T, 3, H, W] on the CPU, upright; in pinned memory where a GPU will read them."""

    frames: Tensor


@dataclass(frozen=True)
class EncodedJpeg:
    """A JPEG file that the device decodes to [3, height, width], and the EXIF orientation (1 to 8) to apply then."""

    data: bytes
    height: int
    width: int
    orientation: int


@dataclass(frozen=True)
class PreparedMedia:
    """One item that passed its checks. `field` names it in messages.

    `resized` is the (height, width) in pixels of the frames that the patches are cut from.
    """

    grid: Grid
    field: str
    resized: tuple[int, int]
    content: FinishedPatches | DecodedFrames | EncodedJpeg

    @property
    def num_patches(self) -> int:
        return self.grid.num_patches
