"""Decodes pictures to the pixels that `transformers.image_utils.load_image` gives."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from triptych.config import LimitsSection
from triptych.media import open_image
from triptych.media.image import unreadable_image

# Pillow's pixels become ours in strips of that many, so that no second whole picture is held on the way.
STRIP_PIXELS = 1 << 18


def decode_image(data: bytes, limits: LimitsSection, field: str, *, is_pinned: bool = False) -> Tensor:
    """The picture, upright by its EXIF orientation, as RGB uint8 [1, 3, H, W], for a GPU to read when `is_pinned`.

    Transparency is dropped, not blended, and palettes, CMYK and 16-bit grey are converted as Pillow does it. Bounds
    are checked on the header first. Raises InvalidRequest naming `field` when the pixels are cut off or broken.
    """
    image = open_image(data, limits, field)
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image, is_pinned)
    except Exception as error:
        raise unreadable_image(field, error) from error


def _rgb(image: Image.Image, is_pinned: bool) -> Tensor:
    width, height = image.size
    pixels = torch.empty((1, 3, height, width), dtype=torch.uint8, pin_memory=is_pinned)
    planes = pixels[0].numpy()
    num_rows = max(STRIP_PIXELS // width, 1)
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        strip = image.crop((0, top, width, bottom)).convert("RGB")
        planes[:, top:bottom] = np.asarray(strip).transpose(2, 0, 1)
    return pixels
