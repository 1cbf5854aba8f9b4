"""The canvas size of a WebP file, read from its first chunk (RFC 9649)."""

import struct


def read_canvas_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels. Raises ValueError for a file without a readable first chunk."""
    if len(data) < 30:
        raise ValueError("the WebP header is cut off")
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(f"the WebP file begins with the chunk {kind!r}")
