"""Decodes pictures to the pixels that `transformers.image_utils.load_image` gives."""

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from triptych.config import LimitsSection
from triptych.media import open_image
from triptych.media.image import unreadable_image


def decode_image(data: bytes, limits: LimitsSection, field: str) -> Tensor:
    """The picture, upright by its EXIF orientation, as RGB uint8 [1, 3, H, W].

    Transparency is dropped, not blended, and palettes, CMYK and 16-bit grey are converted as Pillow does it. Bounds
    are checked on the header first. Raises InvalidRequest naming `field` when the pixels are cut off or broken.
    """
    image = open_image(data, limits, field)
    try:
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:
        raise unreadable_image(field, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
