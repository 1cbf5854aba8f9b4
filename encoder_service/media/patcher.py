"""Frames on the device become rows of the packed patches."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from triptych.kernels.patchify_reference import PatchJob, color_table, resize_and_patchify_reference
from triptych.media.orientation import QUARTER_TURNS, UPRIGHT
from triptych.models.qwen2_5_vl.processing.patches import PatchFormat
from triptych.models.qwen2_5_vl.processing.taps import ResizeTaps, resize_taps

# Resize tables kept, each some ten kilobytes. A stream of pictures of any size repeats its sides.
_MAX_TABLES = 512

ResizeAndPatchify = Callable[[Tensor, PatchJob, Tensor], None]


class FramePatcher:
    """Enqueues on the current stream and waits for nothing. Lives on one thread."""

    def __init__(self, patch_format: PatchFormat, device: torch.device) -> None:
        self._format = patch_format
        self._device = device
        self._colors = color_table(patch_format, device)
        self._tables: OrderedDict[tuple[int, int], ResizeTaps] = OrderedDict()
        self._resize_and_patchify = _choose_kernel(device)

    @property
    def patch_dim(self) -> int:
        return self._format.patch_dim

    def patch(self, frames: Tensor, resized: tuple[int, int], out: Tensor, orientation: int = UPRIGHT) -> None:
        """Frames uint8 [T, 3, H, W] as stored to `out` [num_patches, patch_dim]; `resized` is (height, width)."""
        height, width = frames.shape[2:]
        if orientation in QUARTER_TURNS:
            height, width = width, height
        job = PatchJob(
            self._format, self._taps(width, resized[1]), self._taps(height, resized[0]), self._colors, orientation
        )
        self._resize_and_patchify(frames, job, out)

    def _taps(self, in_size: int, out_size: int) -> ResizeTaps:
        key = (in_size, out_size)
        taps = self._tables.pop(key, None) or resize_taps(in_size, out_size).to(self._device)
        self._tables[key] = taps
        if len(self._tables) > _MAX_TABLES:
            self._tables.popitem(last=False)
        return taps


def _choose_kernel(device: torch.device) -> ResizeAndPatchify:
    if device.type == "cuda":
        try:
            from triptych.kernels.patchify import resize_and_patchify
        except ImportError:
            return resize_and_patchify_reference
        return resize_and_patchify
    return resize_and_patchify_reference
