"""The size that a picture is brought to, and the resizing itself."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.errors import InvalidRequest

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The height and width in pixels, multiples of `factor`, near the given ones with min_pixels <= area <= max_pixels.

    Equal to `smart_resize` of transformers' Qwen2-VL processors. Raises InvalidRequest for a side below 1 or an
    aspect ratio over 200.
    """
    if min(height, width) < 1:
        raise InvalidRequest(f"the picture is {width}x{height} px, expected both sides to be at least 1", field="media")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InvalidRequest(
            f"the picture is {width}x{height} px, expected an aspect ratio of at most {MAX_ASPECT_RATIO}", field="media"
        )
    resized_height = round(height / factor) * factor
    resized_width = round(width / factor) * factor
    if resized_height * resized_width > max_pixels:
        scale = math.sqrt((height * width) / max_pixels)
        resized_height = max(factor, math.floor(height / scale / factor) * factor)
        resized_width = max(factor, math.floor(width / scale / factor) * factor)
    elif resized_height * resized_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        resized_height = math.ceil(height * scale / factor) * factor
        resized_width = math.ceil(width * scale / factor) * factor
    return resized_height, resized_width


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames uint8 [T, 3, H, W] to uint8 [T, 3, height, width], bicubic with antialias, on the device they are on."""
    if frames.shape[-2:] == (height, width):
        return frames
    if frames.device.type == "cpu":
        return F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True)
    return resize_frames_float(frames, height, width)


def resize_frames_float(frames: Tensor, height: int, width: int) -> Tensor:
    """`resize_frames` through float32, for devices whose kernel takes no uint8: within two levels of it.

    Columns first, then rows, cut to 0..255 in between as the uint8 kernel does: without that, values next to a hard
    edge differ by up to 17 levels.
    """
    for size in ((frames.shape[-2], width), (height, width)):
        frames = F.interpolate(frames.float(), size=size, mode="bicubic", antialias=True).round_().clamp_(0, 255)
    return frames.to(torch.uint8)
