"""The tables of a packed pass of the fused tower, cached on the device by the grids that are packed."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.kernels.vision_tiles import cumulative, frame_tiles
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision.order import OrderCache, PackedOrder
from triptych.models.qwen2_5_vl.vision.rotary import AxisRotary
from triptych.models.qwen2_5_vl.vision.upload import upload


@dataclass(frozen=True)
class FusedLayout:
    """One packed forward pass; integers are int32 on the device but for the last three fields.

    `window_order`, `original_order` [cells] bring cells into window order and back. `cos`, `sin` float32 [num_patches,
    head_dim / 2] are in window order. `windows`, `frames` [segments + 1]: where each segment starts, and the end.
    `tiles` [num_tiles, 3]: see `frame_tiles`. `window_lengths`, `frame_lengths`: of the segments, on the host.
    """

    window_order: Tensor
    original_order: Tensor
    cos: Tensor
    sin: Tensor
    windows: Tensor
    frames: Tensor
    tiles: Tensor
    max_window: int
    window_lengths: tuple[int, ...]
    frame_lengths: tuple[int, ...]


class FusedLayoutCache:
    """Builds layouts, keeping the most recently used ones, at most `max_patches` in all.

    Nothing is waited for. Belongs to its tower's one thread and stream.
    """

    def __init__(self, config: VisionConfig, device: torch.device, max_patches: int) -> None:
        self.orders = OrderCache(config, max_patches)
        self.rotary = AxisRotary(config.head_dim, device)
        self.max_patches = max_patches
        self.max_window = max_window(config)
        self._device = device
        self._layouts: OrderedDict[tuple[Grid, ...], FusedLayout] = OrderedDict()
        self._num_patches = 0

    def packed(self, grids: Sequence[Grid]) -> FusedLayout:
        """The layout of `grids` one after the other."""
        key = tuple(grids)
        if key in self._layouts:
            self._layouts.move_to_end(key)
            return self._layouts[key]
        layout = self._build(grids)
        self._layouts[key] = layout
        self._num_patches += len(layout.cos)
        while self._num_patches > self.max_patches and len(self._layouts) > 1:
            _, oldest = self._layouts.popitem(last=False)
            self._num_patches -= len(oldest.cos)
        return layout

    def _build(self, grids: Sequence[Grid]) -> FusedLayout:
        order = self.orders.packed(grids)
        num_positions = max(max(grid.h, grid.w) for grid in grids)
        if num_positions > self.rotary.num_positions:
            self.rotary.grow(num_positions)
        tables = layout_tables(order)
        window_order, original_order, positions, windows, frames, tiles = upload(tables, self._device)
        cos, sin = self.rotary.cos_sin(positions)
        return FusedLayout(
            window_order,
            original_order,
            cos,
            sin,
            windows,
            frames,
            tiles,
            self.max_window,
            tuple(order.window_lengths.tolist()),
            tuple(order.frame_lengths.tolist()),
        )


def max_window(config: VisionConfig) -> int:
    """Patches of a whole window."""
    return (config.window_size // config.patch_size) ** 2


def layout_tables(order: PackedOrder) -> list[np.ndarray]:
    """window_order, original_order, positions, windows, frames and tiles of a FusedLayout, int32 on the host."""
    tables = [
        order.window_order,
        order.original_order,
        order.positions,
        cumulative(order.window_lengths),
        cumulative(order.frame_lengths),
        frame_tiles(order.frame_lengths),
    ]
    return [table.astype(np.int32) for table in tables]
