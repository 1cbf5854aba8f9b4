"""How the patches of packed pictures and videos are ordered, rotated and cut into segments.

Everything here depends on the height and width of a frame alone, so it is made once per frame shape and kept in a
small cache; a video repeats its frame's table.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision.segments import Segments

# Fixed in the architecture: the published configurations have no field for it.
ROTARY_THETA = 10000.0


@dataclass(frozen=True)
class FrameTable:
    """One frame shape. Rows are in window order; a cell is spatial_merge_size squared consecutive patches.

    `cell_order` [cells] int64 on the host: the cell of the frame that comes at each place.
    `cos`, `sin` [patches, head_dim / 2] float32 on the device. `window_lengths` [windows] int64: patches per window.
    """

    cell_order: np.ndarray
    cos: Tensor
    sin: Tensor
    window_lengths: np.ndarray


@dataclass(frozen=True)
class PackedLayout:
    """One packed forward pass.

    `window_order` and `original_order` [cells] int64 bring cells into window order and back. `cos`, `sin`
    [num_patches, head_dim / 2] are in window order. `frames` and `windows` are the segments of full and window
    attention.
    """

    window_order: Tensor
    original_order: Tensor
    cos: Tensor
    sin: Tensor
    frames: Segments
    windows: Segments


class LayoutCache:
    """Builds packed layouts, keeping the tables of the most recently used frame shapes.

    Bounded in patches: `max_patches` x head_dim x 4 bytes on the device. Not safe for concurrent use: a tower runs on
    its stage's one thread.
    """

    def __init__(self, config: VisionConfig, max_patches: int) -> None:
        self.config = config
        self.max_patches = max_patches
        self._tables: OrderedDict[tuple[int, int, torch.device], FrameTable] = OrderedDict()
        self._num_patches = 0

    def packed(self, grids: Sequence[Grid], device: torch.device) -> PackedLayout:
        """The layout of `grids` one after the other."""
        cell_size = self.config.spatial_merge_size**2
        orders, cosines, sines, window_lengths, frame_lengths = [], [], [], [], []
        num_cells = 0
        for grid in grids:
            table = self._table(grid.h, grid.w, device)
            frame_cells = table.cell_order.size
            frame_starts = num_cells + frame_cells * np.arange(grid.t)
            orders.append((frame_starts[:, None] + table.cell_order).reshape(-1))
            cosines.append(table.cos.repeat(grid.t, 1))
            sines.append(table.sin.repeat(grid.t, 1))
            window_lengths.append(np.tile(table.window_lengths, grid.t))
            frame_lengths.append(np.full(grid.t, frame_cells * cell_size))
            num_cells += grid.t * frame_cells
        window_order = np.concatenate(orders)
        return PackedLayout(
            window_order=torch.from_numpy(window_order).to(device),
            original_order=torch.from_numpy(np.argsort(window_order)).to(device),
            cos=torch.cat(cosines),
            sin=torch.cat(sines),
            frames=Segments.from_lengths(np.concatenate(frame_lengths), device),
            windows=Segments.from_lengths(np.concatenate(window_lengths), device),
        )

    def _table(self, height: int, width: int, device: torch.device) -> FrameTable:
        key = (height, width, device)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        table = frame_table(height, width, self.config, device)
        self._tables[key] = table
        self._num_patches += height * width
        while self._num_patches > self.max_patches and len(self._tables) > 1:
            (old_height, old_width, _), _ = self._tables.popitem(last=False)
            self._num_patches -= old_height * old_width
        return table


def frame_table(height: int, width: int, config: VisionConfig, device: torch.device) -> FrameTable:
    """The table of a frame of height x width patches."""
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
    angles = torch.cat([_angles(axis, config.head_dim) for axis in (patch_row, patch_column)], dim=-1).to(device)
    return FrameTable(cell_order, angles.cos(), angles.sin(), window_lengths)


def _angles(axis_positions: np.ndarray, head_dim: int) -> Tensor:
    """Rotary angles [patches, head_dim / 4] of one axis: each axis turns half of the frequencies."""
    axis_dim = head_dim // 2
    frequencies = 1.0 / ROTARY_THETA ** (torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim)
    return torch.from_numpy(axis_positions.reshape(-1)).to(torch.float32)[:, None] * frequencies
