"""EXIF orientations as a way to walk over the pixels, so that turning a picture copies nothing."""

from dataclasses import dataclass

# EXIF's values. 1 is upright, as is any value that the standard does not know.
UPRIGHT = 1
_MIRRORED_ROWS = (3, 4, 6, 7)
_MIRRORED_COLUMNS = (2, 3, 7, 8)
QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True)
class PixelWalk:
    """Where the upright picture's pixels lie in a plane of the stored one.

    Upright pixel (row, column) of `height` x `width` is at offset + row * row_stride + column * column_stride.
    """

    height: int
    width: int
    offset: int
    row_stride: int
    column_stride: int


def upright_walk(stored_height: int, stored_width: int, orientation: int) -> PixelWalk:
    """The walk over a contiguous plane [stored_height, stored_width] that an EXIF `orientation` asks for."""
    is_row_mirrored, is_column_mirrored = orientation in _MIRRORED_ROWS, orientation in _MIRRORED_COLUMNS
    offset = (stored_height - 1) * stored_width * is_row_mirrored + (stored_width - 1) * is_column_mirrored
    down = -stored_width if is_row_mirrored else stored_width
    right = -1 if is_column_mirrored else 1
    if orientation in QUARTER_TURNS:
        return PixelWalk(stored_width, stored_height, offset, right, down)
    return PixelWalk(stored_height, stored_width, offset, down, right)
