"""Which JPEG files a device may decode, told from their headers; how a file's orientation is walked."""

import random

import pytest
from media_samples import encoded, oriented, picture

from triptych.media.jpeg import PlainJpeg, read_plain_jpeg
from triptych.media.orientation import upright_walk


def edited(data: bytes, marker: int, offset: int, replacement: bytes) -> bytes:
    """`data` with bytes exchanged at `offset` behind the first such marker."""
    position = data.index(bytes([0xFF, marker])) + offset
    return data[:position] + replacement + data[position + len(replacement) :]


@pytest.mark.parametrize(
    ("mode", "num_components", "subsampling"), [("RGB", 3, 0), ("RGB", 3, 1), ("RGB", 3, 2), ("L", 1, 0)]
)
def test_plain_files(mode: str, num_components: int, subsampling: int) -> None:
    data = encoded(picture(70, 33, mode), "JPEG", subsampling=subsampling)
    assert read_plain_jpeg(data) == PlainJpeg(70, 33, num_components, False)


def test_progressive_files_and_those_with_metadata() -> None:
    assert read_plain_jpeg(encoded(picture(70, 33), "JPEG", progressive=True)) == PlainJpeg(70, 33, 3, True)
    thumbnail = encoded(picture(8, 8), "JPEG")
    data = encoded(
        picture(70, 33), "JPEG", exif=b"Exif\0\0" + thumbnail, comment=b"\xff\xd9", icc_profile=b"\xff\xc0" * 9
    )
    assert read_plain_jpeg(data) == PlainJpeg(70, 33, 3, False)
    assert read_plain_jpeg(oriented(picture(70, 33), 6, "JPEG")) == PlainJpeg(70, 33, 3, False)
    assert read_plain_jpeg(encoded(picture(70, 33), "JPEG") + b"trailer") is not None


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(70, 33), "PNG"),
        encoded(picture(70, 33, "CMYK"), "JPEG"),
        encoded(picture(70, 33), "JPEG", keep_rgb=True),
        encoded(picture(70, 33, "L"), "JPEG", subsampling=2),
        edited(encoded(picture(70, 33), "JPEG"), 0xC0, 1, b"\xc1"),  # extended
        edited(encoded(picture(70, 33), "JPEG"), 0xC0, 1, b"\xc9"),  # arithmetic
        edited(encoded(picture(70, 33), "JPEG"), 0xC0, 4, b"\x0c"),  # 12 bits
        edited(encoded(picture(70, 33), "JPEG"), 0xC0, 5, b"\0\0"),  # no height
        edited(encoded(picture(70, 33), "JPEG"), 0xC0, 11, b"\x31"),  # sampling 3x1
        edited(encoded(picture(70, 33), "JPEG"), 0xDB, 2, b"\xff\xff"),  # a segment beyond the end
        encoded(picture(70, 33), "JPEG")[:-2],
        b"",
        b"\xff\xd8",
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 5_000,
    ],
)
def test_all_others_are_left_to_the_cpu(data: bytes) -> None:
    assert read_plain_jpeg(data) is None


def test_two_frames_are_not_plain() -> None:
    data = encoded(picture(70, 33), "JPEG")
    begin = data.index(b"\xff\xc0")
    frame = data[begin : begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")]
    assert read_plain_jpeg(data[:begin] + frame + data[begin:]) is None


def test_damaged_files_raise_nothing() -> None:
    generator = random.Random(0)
    data = encoded(picture(70, 33), "JPEG")
    for _ in range(500):
        damaged = bytearray(data[: generator.randrange(len(data))])
        for _ in range(min(len(damaged), 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        read_plain_jpeg(bytes(damaged))


@pytest.mark.parametrize("orientation", range(9))
def test_walks_visit_every_pixel_once(orientation: int) -> None:
    walk = upright_walk(3, 5, orientation)
    visited = [
        walk.offset + row * walk.row_stride + column * walk.column_stride
        for row in range(walk.height)
        for column in range(walk.width)
    ]
    assert sorted(visited) == list(range(15))
