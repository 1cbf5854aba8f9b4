"""Pictures and videos drawn for tests."""

import io
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Random pixels in any of Pillow's modes."""
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65_536, (height, width), dtype=np.uint16))
    rgb = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode in ("RGBA", "LA", "PA"):
        rgb.putalpha(Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8)))
    return rgb.convert(mode)


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def oriented(image: Image.Image, orientation: int, image_format: str) -> bytes:
    """The picture with an EXIF orientation, pixels unchanged."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, image_format, exif=exif.tobytes())


def video_frames(num_frames: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames uint8 [H, W, 3], each of one grey that tells its index."""
    return [np.full((height, width, 3), 10 + index * 200 // num_frames, dtype=np.uint8) for index in range(num_frames)]


def video(
    num_frames: int = 10,
    width: int = 64,
    height: int = 48,
    rate: Fraction | int = 10,
    container: str = "mp4",
    codec: str = "libx264",
    **options: str,
) -> bytes:
    import av  # Pictures are drawn on machines without it too.

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in video_frames(num_frames, width, height):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()
