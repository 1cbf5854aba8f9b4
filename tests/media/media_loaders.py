"""Items for patch loaders, and a JPEG decoder that stands where a GPU's would."""

import io
import random
from collections.abc import Sequence

import numpy as np
import torch
from media_samples import encoded, oriented, picture
from PIL import Image
from torch import Tensor

from encoder_service.items import MediaItem
from encoder_service.media.prepared import EncodedJpeg
from triptych.config import LimitsSection
from triptych.media import content_key
from triptych.media.jpeg import PlainJpeg
from triptych.media.layout import MediaProcessing, media_layout
from triptych.models.qwen2_5_vl.processing import ImageProcessing, VideoProcessing
from triptych.models.qwen2_5_vl.processing.settings import CLIP_MEAN, CLIP_STD
from triptych.v1 import common_pb2

LIMITS = LimitsSection()
FORMAT = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "mean": CLIP_MEAN, "std": CLIP_STD}
SMALL = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 64}


class PillowJpegDecoder:
    """As nvJPEG: pixels as stored, baseline files alone, None for a file that is refused. Records what it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def takes(self, jpeg: PlainJpeg) -> bool:
        return not jpeg.is_progressive

    def decode(self, jpegs: Sequence[EncodedJpeg]) -> list[Tensor | None]:
        self.batches.append(len(jpegs))
        return [self._decode(jpeg) for jpeg in jpegs]

    @staticmethod
    def _decode(jpeg: EncodedJpeg) -> Tensor | None:
        try:
            pixels = np.array(Image.open(io.BytesIO(jpeg.data)).convert("RGB"))
        except OSError:
            return None
        frame = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return frame if frame.shape == (3, jpeg.height, jpeg.width) else None


def processing(**changes: int) -> MediaProcessing:
    """Of small pictures and videos."""
    values = FORMAT | SMALL | changes
    frames = {"fps": 2.0, "min_frames": 4, "max_frames": 16, "cap_pixels_per_frame": False, "max_video_tokens": 4_096}
    return MediaProcessing(ImageProcessing(**values), VideoProcessing(**values, **frames))  # type: ignore[arg-type]


def item_of(media: common_pb2.Media, of: MediaProcessing, field: str = "media") -> MediaItem:
    return MediaItem(content_key(media), media_layout(media, of, LIMITS, field).grid, media, field)


def random_picture(seed: int, largest: int = 120) -> bytes:
    """A file of any format, mode, orientation and size, up to `largest` pixels a side."""
    generator = random.Random(seed)
    width, height = generator.randint(1, largest), generator.randint(1, largest)
    kind = generator.choice(["jpeg", "jpeg", "jpeg", "oriented", "grey", "progressive", "cmyk", "png", "webp", "gif"])
    image = picture(width, height, seed=seed)
    if kind == "jpeg":
        return encoded(image, "JPEG", quality=generator.randint(30, 95), subsampling=generator.randint(0, 2))
    if kind == "oriented":
        return oriented(image, generator.randint(1, 8), "JPEG")
    if kind == "progressive":
        return encoded(image, "JPEG", progressive=True)
    if kind in ("grey", "cmyk"):
        return encoded(image.convert("L" if kind == "grey" else "CMYK"), "JPEG")
    mode = generator.choice({"png": ["RGB", "RGBA", "P", "LA", "1", "I;16"], "webp": ["RGB", "RGBA"]}.get(kind, ["P"]))
    return encoded(picture(width, height, mode, seed=seed), kind.upper())


def broken(data: bytes, seed: int) -> bytes:
    """Cut off, with other bytes among the pixels, or both; the header stays."""
    generator = random.Random(seed)
    begin = max(data.rfind(b"\xff\xda") + 12, len(data) // 2)
    damaged = bytearray(data)
    for _ in range(generator.choice([0, 1, 20])):
        damaged[generator.randrange(min(begin, len(data) - 1), len(data))] = generator.randrange(256)
    return bytes(damaged[: generator.choice([len(data), begin + 4, len(data) - 2])])


def picture_item(data: bytes, of: MediaProcessing, field: str = "media") -> MediaItem:
    return item_of(common_pb2.Media(kind=common_pb2.MEDIA_KIND_IMAGE, data=data), of, field)
