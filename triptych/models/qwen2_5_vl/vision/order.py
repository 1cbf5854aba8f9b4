"""In which order the patches of packed pictures and videos are computed, on the host.

Everything here depends on the height and width of a frame alone, so it is made once per frame shape and kept in a
small cache; a video repeats its frame's order.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class FrameOrder:
    """One frame shape. Rows are in window order; a cell is spatial_merge_size squared consecutive patches.

    `cell_order` [cells]: the cell of the frame that comes at each place. `positions` [patches, 2]: row and column of
    each patch. `window_lengths` [windows]: patches per window.
    """

    cell_order: Integers
    positions: Integers
    window_lengths: Integers


@dataclass(frozen=True)
class PackedOrder:
    """One packed forward pass.

    `window_order` and `original_order` [cells] bring cells into window order and back. `positions` [num_patches, 2] are
    in window order. `window_lengths` and `frame_lengths` are the patches of each segment of window and full attention.
    """

    window_order: Integers
    original_order: Integers
    positions: Integers
    window_lengths: Integers
    frame_lengths: Integers


class OrderCache:
    """Builds packed orders, keeping those of the most recently used frame shapes, at most `max_patches` in all."""

    def __init__(self, config: VisionConfig, max_patches: int) -> None:
        self.config = config
        self.max_patches = max_patches
        self._frames: OrderedDict[tuple[int, int], FrameOrder] = OrderedDict()
        self._num_patches = 0

    def packed(self, grids: Sequence[Grid]) -> PackedOrder:
        """The order of `grids` one after the other."""
        cell_size = self.config.spatial_merge_size**2
        orders, positions, window_lengths, frame_lengths = [], [], [], []
        num_cells = 0
        for grid in grids:
            frame = self._frame(grid.h, grid.w)
            frame_cells = frame.cell_order.size
            frame_starts = num_cells + frame_cells * np.arange(grid.t)
            orders.append((frame_starts[:, None] + frame.cell_order).reshape(-1))
            positions.append(np.tile(frame.positions, (grid.t, 1)))
            window_lengths.append(np.tile(frame.window_lengths, grid.t))
            frame_lengths.append(np.full(grid.t, frame_cells * cell_size))
            num_cells += grid.t * frame_cells
        window_order = np.concatenate(orders)
        original_order = np.empty_like(window_order)
        original_order[window_order] = np.arange(num_cells)
        return PackedOrder(
            window_order,
            original_order,
            np.concatenate(positions),
            np.concatenate(window_lengths),
            np.concatenate(frame_lengths),
        )

    def _frame(self, height: int, width: int) -> FrameOrder:
        key = (height, width)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        frame = frame_order(height, width, self.config)
        self._frames[key] = frame
        self._num_patches += height * width
        while self._num_patches > self.max_patches and len(self._frames) > 1:
            (old_height, old_width), _ = self._frames.popitem(last=False)
            self._num_patches -= old_height * old_width
        return frame


def frame_order(height: int, width: int, config: VisionConfig) -> FrameOrder:
    """The order of a frame of height x width patches."""
    merge = config.spatial_merge_size
    rows, columns = height // merge, width // merge
    window = config.window_size // merge // config.patch_size
    cell_row, cell_column = np.divmod(np.arange(rows * columns), columns)
    # Windows in row-major order, cells in row-major order inside each: a stable sort by window keeps the latter.
    window_of_cell = (cell_row // window) * -(-columns // window) + cell_column // window
    cell_order = np.argsort(window_of_cell, kind="stable")
    window_lengths = np.bincount(window_of_cell) * merge**2

    inner_row, inner_column = np.divmod(np.arange(merge**2), merge)
    patch_row = (merge * cell_row[cell_order])[:, None] + inner_row
    patch_column = (merge * cell_column[cell_order])[:, None] + inner_column
    positions = np.stack((patch_row.reshape(-1), patch_column.reshape(-1)), axis=1)
    return FrameOrder(cell_order, positions, window_lengths)
