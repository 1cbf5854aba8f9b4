"""Pictures of random sizes, modes and formats, some of them broken, and a stage that gets all of them at once."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from media_samples import encoded, oriented, picture
from torch import Tensor

from triptych.v1 import common_pb2

# Mode, format and options of the encoder.
KINDS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("RGB", "JPEG", {"quality": 90}),
    ("RGB", "JPEG", {"quality": 70, "subsampling": 0}),
    ("RGB", "JPEG", {"progressive": True}),
    ("CMYK", "JPEG", {}),
    ("L", "JPEG", {}),
    ("RGB", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("LA", "PNG", {}),
    ("P", "PNG", {}),
    ("1", "PNG", {}),
    ("I;16", "PNG", {}),
    ("RGB", "WEBP", {}),
    ("RGBA", "WEBP", {}),
    ("P", "GIF", {}),
    ("RGB", "BMP", {}),
    ("L", "TIFF", {}),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}),
)
# Cut in half, these have a whole header.
BREAKABLE = ("JPEG", "PNG")


@dataclass(frozen=True)
class BurstPicture:
    media: common_pb2.Media
    kind: str
    is_broken: bool


def draw_burst(count: int, *, max_side: int, seed: int) -> list[BurstPicture]:
    """Every kind comes several times; a tenth is broken; a seventh of the JPEG files says that it lies on its side."""
    source = random.Random(seed)
    pictures = []
    for index in range(count):
        mode, image_format, options = KINDS[index % len(KINDS)]
        width, height = source.randint(8, max_side), source.randint(8, max_side)
        is_broken = image_format in BREAKABLE and source.random() < 0.2
        if is_broken:
            width, height = max(width, 64), max(height, 64)
        image = picture(width, height, mode, seed=1_000 * seed + index)
        if image_format == "JPEG" and not is_broken and source.random() < 0.3:
            data = oriented(image, source.randint(2, 8), "JPEG")
        else:
            data = encoded(image, image_format, **options)
        data = data[: len(data) // 2] if is_broken else data
        media = common_pb2.Media(kind=common_pb2.MEDIA_KIND_IMAGE, data=data)
        pictures.append(BurstPicture(media, f"{mode} {image_format} {width}x{height} {options}", is_broken))
    source.shuffle(pictures)
    return pictures


async def send_burst(
    pictures: Sequence[BurstPicture],
    send: Callable[[BurstPicture], Awaitable[Tensor]],
    cancelled: Collection[int] = (),
    seed: int = 0,
) -> list[Tensor | BaseException]:
    """All at once; those of `cancelled` are given up after a random short while. Answers what became of each."""
    source = random.Random(seed)
    tasks = [asyncio.ensure_future(send(each)) for each in pictures]

    async def give_up(index: int) -> None:
        await asyncio.sleep(source.random() * 0.3)
        tasks[index].cancel()

    _, *results = await asyncio.gather(
        asyncio.gather(*(give_up(index) for index in cancelled)), *tasks, return_exceptions=True
    )
    return results
