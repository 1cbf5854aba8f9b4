"""How the patches of packed pictures and videos are ordered, rotated and cut into segments, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision.order import OrderCache
from triptych.models.qwen2_5_vl.vision.rotary import AxisRotary
from triptych.models.qwen2_5_vl.vision.segments import Segments
from triptych.models.qwen2_5_vl.vision.upload import upload


@dataclass(frozen=True)
class PackedLayout:
    """One packed forward pass.

    `window_order` and `original_order` [cells] int64 bring cells into window order and back. `cos`, `sin`
    [num_patches, head_dim / 2] float32 are in window order. `frames` and `windows` are the segments of full and window
    attention.
    """

    window_order: Tensor
    original_order: Tensor
    cos: Tensor
    sin: Tensor
    frames: Segments
    windows: Segments


class LayoutCache:
    """Builds packed layouts, keeping what depends on the most recently used frame shapes, `max_patches` in all.

    Nothing is waited for. Not safe for concurrent use: a tower runs on its stage's one thread.
    """

    def __init__(self, config: VisionConfig, max_patches: int) -> None:
        self.orders = OrderCache(config, max_patches)
        self._head_dim = config.head_dim
        self._rotary: dict[torch.device, AxisRotary] = {}

    def packed(self, grids: Sequence[Grid], device: torch.device) -> PackedLayout:
        """The layout of `grids` one after the other."""
        order = self.orders.packed(grids)
        window_order, original_order, positions = upload(
            [order.window_order, order.original_order, order.positions], device
        )
        cos, sin = self._rotary_of(device, max(max(grid.h, grid.w) for grid in grids)).cos_sin(positions)
        return PackedLayout(
            window_order,
            original_order,
            cos,
            sin,
            frames=Segments.from_lengths(order.frame_lengths, device),
            windows=Segments.from_lengths(order.window_lengths, device),
        )

    def _rotary_of(self, device: torch.device, num_positions: int) -> AxisRotary:
        if device not in self._rotary:
            self._rotary[device] = AxisRotary(self._head_dim, device)
        rotary = self._rotary[device]
        if num_positions > rotary.num_positions:
            rotary.grow(num_positions)
        return rotary
