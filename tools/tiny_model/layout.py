"""Where each patch of a picture goes: the processor's order, the window order of the tower, and the way back."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tools.tiny_model.shape import MERGE, PATCH

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """One frame of `rows` x `columns` patches.

    `rows_of` and `columns_of` [patches] are in window order; `to_window` [patches] maps a window-ordered patch to its
    place in the processor's order; `cell_from_window` [cells] maps a merged cell in raster order to its place in window
    order; `windows` holds the number of patches of each window.
    """

    to_window: Indices
    rows_of: Indices
    columns_of: Indices
    cell_from_window: Indices
    windows: tuple[int, ...]

    @property
    def num_patches(self) -> int:
        return len(self.to_window)


@lru_cache(maxsize=512)
def frame_layout(rows: int, columns: int, window_cells: int) -> FrameLayout:
    """Layout of a frame; `window_cells` is the window's side in merged cells."""
    cell_rows, cell_columns = rows // MERGE, columns // MERGE
    cells = np.arange(cell_rows * cell_columns).reshape(cell_rows, cell_columns)
    tiles = [
        cells[top : top + window_cells, left : left + window_cells].ravel()
        for top in range(0, cell_rows, window_cells)
        for left in range(0, cell_columns, window_cells)
    ]
    cell_order = np.concatenate(tiles)
    inside = np.arange(MERGE * MERGE)
    to_window = (cell_order[:, None] * MERGE * MERGE + inside).ravel()
    rows_of = ((cell_order // cell_columns)[:, None] * MERGE + inside // MERGE).ravel()
    columns_of = ((cell_order % cell_columns)[:, None] * MERGE + inside % MERGE).ravel()
    windows = tuple(len(tile) * MERGE * MERGE for tile in tiles)
    return FrameLayout(to_window, rows_of, columns_of, np.argsort(cell_order), windows)


def patchify(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[height, width, 3] to [patches, 3, 14 * 14] in the processor's order (cell rows, cell columns, 2, 2)."""
    height, width, channels = image.shape
    cells = image.reshape(height // (PATCH * MERGE), MERGE, PATCH, width // (PATCH * MERGE), MERGE, PATCH, channels)
    return cells.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, channels, PATCH * PATCH)
