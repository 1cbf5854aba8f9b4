"""Pictures are measured as transformers would see them, within bounds, from their headers alone."""

import io
import struct
import time
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import encoded, oriented, picture
from PIL import Image, PngImagePlugin
from transformers.image_utils import load_image

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge, TriptychError
from triptych.media import ImageShape, probe_image

FIELD = "messages[0].parts[1].image.data"
LIMITS = LimitsSection()
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_allowed_format_is_measured(image_format: str) -> None:
    assert probe_image(encoded(picture(37, 21), image_format), LIMITS, FIELD) == ImageShape(37, 21)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_transformers_after_exif_orientation(image_format: str, orientation: int) -> None:
    data = oriented(picture(40, 24), orientation, image_format)
    expected = load_image(Image.open(io.BytesIO(data)))
    shape = probe_image(data, LIMITS, FIELD)
    assert (shape.width, shape.height) == expected.size
    assert (shape.width < shape.height) == (orientation >= 5)


def test_png_orientation_behind_the_pixels_counts() -> None:
    data = encoded(picture(40, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    end = data.rindex(b"IEND") - 4
    data = data[:end] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[end:]
    assert load_image(Image.open(io.BytesIO(data))).size == (24, 40)
    assert probe_image(data, LIMITS, FIELD) == ImageShape(24, 40)


def test_multi_picture_phone_jpeg() -> None:
    buffer = io.BytesIO()
    picture(40, 24).save(buffer, "MPO", save_all=True, append_images=[picture(40, 24, seed=1)])
    assert probe_image(buffer.getvalue(), LIMITS, FIELD) == ImageShape(40, 24)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_modes(mode: str) -> None:
    image_format = "TIFF" if mode == "CMYK" else "PNG"
    assert probe_image(encoded(picture(9, 7, mode), image_format), LIMITS, FIELD) == ImageShape(9, 7)


def test_one_pixel_is_a_picture() -> None:
    assert probe_image(encoded(picture(1, 1)), LIMITS, FIELD) == ImageShape(1, 1)


@pytest.mark.parametrize(("width", "height", "is_fine"), [(200, 1, True), (1, 200, True), (201, 1, False)])
def test_aspect_ratio(width: int, height: int, is_fine: bool) -> None:
    data = encoded(picture(width, height))
    if is_fine:
        probe_image(data, LIMITS, FIELD)
        return
    with pytest.raises(InvalidRequest, match="200 times") as caught:
        probe_image(data, LIMITS, FIELD)
    assert caught.value.field == FIELD


def huge_webp() -> bytes:
    size = (29_999).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x00\x00\x00\x00" + size + size
    return b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended


def huge_gif() -> bytes:
    data = bytearray(encoded(picture(8, 8).convert("P"), "GIF"))
    data[6:10] = struct.pack("<HH", 30_000, 30_000)
    return bytes(data)


HUGE = {
    "png": png_header(30_000, 30_000),
    "webp": huge_webp(),
    "gif": huge_gif(),
    "bmp": encoded(picture(8, 8), "BMP")[:18] + struct.pack("<ii", 30_000, 30_000) + encoded(picture(8, 8), "BMP")[26:],
}


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE.keys())
def test_a_huge_picture_is_refused_by_its_header(data: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(RequestTooLarge) as caught:
        probe_image(data, LIMITS, FIELD)
    assert time.perf_counter() - start < 0.2
    assert caught.value.field == FIELD
    assert FIELD in caught.value.message
    assert "30000x30000" in caught.value.message
    assert "64000000 (limits.max_image_pixels)" in caught.value.message


def test_a_limit_over_pillows_own_is_obeyed() -> None:
    limits = LimitsSection(max_image_pixels=1_000_000_000)
    assert probe_image(png_header(30_000, 30_000), limits, FIELD) == ImageShape(30_000, 30_000)


BOMB = zlib.compress(bytes(80_000_000), 9)
BOMBS = {
    "text": chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "profile": chunk(b"iCCP", b"x\0\0" + BOMB),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("is_behind_pixels", [False, True])
def test_compressed_metadata_is_bounded(bomb: bytes, is_behind_pixels: bool) -> None:
    data = png_header(4, 4, bomb)
    if is_behind_pixels:
        data = png_header(4, 4)[:-12] + bomb + png_header(4, 4)[-12:]
    start = time.perf_counter()
    try:
        assert probe_image(data, LIMITS, FIELD) == ImageShape(4, 4)  # a profile that is cut off does no harm
    except InvalidRequest as error:
        assert error.field == FIELD
    assert time.perf_counter() - start < 0.2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello, world", "JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "JPEG, PNG"),
        (encoded(picture(8, 8), "ICO"), "JPEG, PNG"),
        (encoded(picture(8, 8))[:20], "not a readable image"),
        (encoded(picture(8, 8), "JPEG")[:60], "not a readable image"),
        (encoded(picture(8, 8), "WEBP")[:24], "not a readable image"),
        (png_header(0, 5), FIELD),
    ],
)
def test_what_is_no_picture(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        probe_image(data, LIMITS, FIELD)
    assert words in caught.value.message
    assert FIELD in caught.value.message
    assert caught.value.field == FIELD


def test_bytes_are_bounded_before_anything_is_read() -> None:
    with pytest.raises(RequestTooLarge, match=r"has 101 bytes, expected at most 100 \(limits.max_image_bytes\)"):
        probe_image(bytes(101), LimitsSection(max_image_bytes=100), FIELD)


def test_pixels_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", refuse)
    for image_format in FORMATS:
        probe_image(encoded(picture(30, 20), image_format), LIMITS, FIELD)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_files_raise_nothing_else(image_format: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(picture(16, 16).convert("P" if image_format == "GIF" else "RGB"), image_format))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        shape = probe_image(bytes(damaged), LIMITS, FIELD)
        assert shape.width * shape.height <= LIMITS.max_image_pixels
    except TriptychError as error:
        assert isinstance(error, InvalidRequest) and error.field == FIELD
