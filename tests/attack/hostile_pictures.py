"""Picture files made to do harm: cut, lying, or small files that want a lot of time or memory."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from attack_helpers import MIB, png
from PIL import Image

BIG = 8_000  # 64 million pixels: the most that limits.max_image_pixels lets through


@dataclass(frozen=True)
class HostilePicture:
    """`says` must be part of the message. `peak_bytes` is what answering may cost on top of the file."""

    name: str
    make: Callable[[], bytes]
    says: tuple[str, ...]
    peak_bytes: int = 64 * MIB


def noise(width: int = 112, height: int = 112) -> Image.Image:
    random = np.random.default_rng(3)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(picture: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def plain(image_format: str, size: int = 56, mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, (size, size)), image_format)


def cut_jpeg(share: float) -> bytes:
    data = encoded(noise(), "JPEG")
    return data[: int(len(data) * share)]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png_bomb(width: int, height: int) -> bytes:
    """A few hundred bytes that promise a huge picture."""
    return png_header(width, height) + png_chunk(b"IDAT", zlib.compress(bytes(MIB), 9)) + png_chunk(b"IEND", b"")


def png_too_much_pixel_data() -> bytes:
    """56x56 pixels by its header, 64 MiB of pixel data: a decoder must stop when the picture is full."""
    return png_header(56, 56) + png_chunk(b"IDAT", deflated_zeros(64)) + png_chunk(b"IEND", b"")


def png_too_little_pixel_data() -> bytes:
    return png_header(4_000, 4_000) + png_chunk(b"IDAT", zlib.compress(bytes(1_000))) + png_chunk(b"IEND", b"")


def png_with(*chunks: bytes) -> bytes:
    data = plain("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def deflated_zeros(num_mib: int) -> bytes:
    compress = zlib.compressobj(9)
    return b"".join(compress.compress(bytes(MIB)) for _ in range(num_mib)) + compress.flush()


def png_text_bomb() -> bytes:
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + deflated_zeros(1))
    return png_with(*[bomb] * 100)


def png_profile_bomb() -> bytes:
    return png_with(png_chunk(b"iCCP", b"profile\0\0" + deflated_zeros(64)))


def png_many_chunks(num_mib: int = 4) -> bytes:
    return png_with(png_chunk(b"abCd", b"") * (num_mib * MIB // 12))


def jpeg_with(segments: bytes) -> bytes:
    data = plain("JPEG")
    return data[:2] + segments + data[2:]


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_many_segments() -> bytes:
    """Pillow keeps a list of all of them: 36 times their size."""
    return jpeg_with(jpeg_segment(0xE5, b"") * (4 * MIB // 4))


def jpeg_many_exif_segments() -> bytes:
    """Pillow joins them one by one, which takes time by the square of their number."""
    return jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + bytes(60)) * (4 * MIB // 70))


def jpeg_padding() -> bytes:
    return jpeg_with(b"\xff" * (8 * MIB))


def jpeg_many_scans() -> bytes:
    """A progressive picture whose last pass is repeated: each repetition costs a walk over all pixels."""
    data = encoded(Image.new("RGB", (4_000, 4_000)), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last_scan * 2_000 + data[-2:]


def gif_parts() -> tuple[bytes, bytes]:
    """What stands before the first block of a GIF, and the rest."""
    data = plain("GIF", mode="P")
    end = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    return data[:end], data[end:]


def gif_bomb() -> bytes:
    """Ten thousand frames of 30,000x30,000, a few bytes each."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, 30_000, 30_000, 0) + b"\x08\x02\x00\x00\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 30_000, 30_000, 0, 0, 0) + frame * 10_000 + b";"


def gif_frame_beyond_its_screen() -> bytes:
    head, blocks = gif_parts()
    place = blocks.index(b",")
    return head + blocks[: place + 5] + struct.pack("<HH", 60_000, 60_000) + blocks[place + 9 :]


def gif_many_blocks() -> bytes:
    """A comment in pieces of one byte."""
    head, blocks = gif_parts()
    return head + b"\x21\xfe" + b"\x01x" * (2 * MIB) + b"\0" + blocks


def tiff_overlapping_tags() -> bytes:
    """500 tags that all claim the same 4 MiB as their value."""
    entries = [
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in ((256, 56), (257, 56), (262, 1), (273, 8), (278, 56), (279, 3136))
    ]
    entries += [struct.pack("<HHII", 30_000 + index, 1, 4 * MIB, 8) for index in range(500)]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4 + 4 * MIB)


HOSTILE_PICTURES = (
    *(
        HostilePicture(f"jpeg cut at {share}", lambda share=share: cut_jpeg(share), ("not a readable image",))
        for share in (0.05, 0.2, 0.5, 0.9, 0.99)
    ),
    HostilePicture("jpeg cut to its magic", lambda: cut_jpeg(1)[:3], ("not a readable image",)),
    HostilePicture("png cut", lambda: png(noise())[:-2000], ("not a readable image",)),
    HostilePicture("extreme aspect", lambda: png(Image.new("RGB", (1, 2_000))), ("1x2000", "200 times")),
    HostilePicture("30,000x30,000", lambda: png_bomb(30_000, 30_000), ("30000x30000", "64000000", "max_image_pixels")),
    HostilePicture("largest png", lambda: png_bomb(2**31 - 1, 2**31 - 1), ("64000000", "limits.max_image_pixels")),
    HostilePicture("zero width", lambda: png_bomb(0, 56), ("not a readable image",)),
    HostilePicture("too little pixel data", png_too_little_pixel_data, ("not a readable image",), 160 * MIB),
    HostilePicture("text bomb", png_text_bomb, ("not a readable image",), 128 * MIB),
    HostilePicture("profile bomb", png_profile_bomb, ("not a readable image",)),
    HostilePicture("many chunks", png_many_chunks, ("more than 65536 chunks",)),
    HostilePicture("many jpeg segments", jpeg_many_segments, ("too many segments",)),
    HostilePicture("many exif segments", jpeg_many_exif_segments, ("segments",)),
    HostilePicture("jpeg padding", jpeg_padding, ("too many segments",)),
    HostilePicture("many scans", jpeg_many_scans, ("scans",)),
    HostilePicture("animated gif bomb", gif_bomb, ("30000x30000", "limits.max_image_pixels")),
    HostilePicture(
        "gif frame beyond its screen", gif_frame_beyond_its_screen, ("3600000000 pixels", "limits.max_image_pixels")
    ),
    HostilePicture("gif of many blocks", gif_many_blocks, ("blocks",)),
    HostilePicture("empty", lambda: b"", ("is empty", "expected an image file")),
    HostilePicture("text", lambda: b"What is in the picture?", ("expected an image file", "JPEG, PNG")),
    HostilePicture("svg", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', ("expected an image file",)),
    HostilePicture("pdf", lambda: b"%PDF-1.7\n1 0 obj\n", ("expected an image file",)),
    HostilePicture("eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ("expected an image file",)),
    HostilePicture("zeros", lambda: bytes(MIB), ("expected an image file",)),
    HostilePicture("too many bytes", lambda: bytes(33 * MIB), ("33554432", "limits.max_image_bytes"), 256 * MIB),
)
