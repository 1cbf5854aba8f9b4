"""Pictures in a terminal: each character cell shows two pixels, the upper one as colour of a half block."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

_UPPER_HALF = "\N{UPPER HALF BLOCK}"
_GAP = "  "


def half_blocks(pictures: Sequence[Image.Image], rows: int) -> Text:
    """The pictures side by side, each `rows` lines high and as wide as its shape asks for."""
    grids = [_cells(picture.convert("RGB"), rows) for picture in pictures]
    text = Text(no_wrap=True)
    for row in range(rows):
        for index, grid in enumerate(grids):
            text.append(_GAP if index else "")
            for column in range(grid.width):
                upper, lower = grid.getpixel((column, 2 * row)), grid.getpixel((column, 2 * row + 1))
                text.append(_UPPER_HALF, Style(color=_color(upper), bgcolor=_color(lower)))
        text.append("\n")
    return text


def _cells(picture: Image.Image, rows: int) -> Image.Image:
    """Two pixels a row; a cell is about twice as high as wide, so a pixel is square."""
    height = 2 * rows
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.BOX)


def _color(pixel: object) -> Color:
    assert isinstance(pixel, tuple)
    red, green, blue = pixel
    return Color.from_rgb(red, green, blue)
