"""Which JPEG files are plain: those that every decoder reads in the same way."""

import struct
from dataclasses import dataclass

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_BASELINE, _START_OF_PROGRESSIVE, _START_OF_SCAN = 0xC0, 0xC2, 0xDA
# Huffman and quantisation tables, restart interval, comment; and APP0 to APP15.
_TABLES_AND_COMMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
_ADOBE = 0xEE
_YCBCR = 1
# Sampling factors (horizontal, vertical) of the first component where the others have 1x1: 4:4:4, 4:2:2, 4:2:0, 4:4:0,
# 4:1:1 and 4:1:0.
_SAMPLING = frozenset(((1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (4, 2)))
# As Pillow's bound on what it reads before the pixels: a file may not consist of segments.
_MAX_SEGMENTS = 1_024


@dataclass(frozen=True)
class PlainJpeg:
    """The size in pixels as the file stores them, before its EXIF orientation."""

    width: int
    height: int
    num_components: int
    is_progressive: bool


def read_plain_jpeg(data: bytes) -> PlainJpeg | None:
    """What the header says of a file that is Huffman-coded, baseline or progressive, of 8 bits, grey or YCbCr, with one
    frame that begins in one place and ends with an end marker; None for every other file.

    The segments are walked over without decoding; a thumbnail inside one is not looked at.
    """
    if not data.startswith(_START_OF_IMAGE):
        return None
    position, frame = len(_START_OF_IMAGE), None
    for _ in range(_MAX_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            return None
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            return None
        position += 2 + length
        if marker in (_START_OF_BASELINE, _START_OF_PROGRESSIVE):
            if frame is not None:
                return None
            frame = _read_frame(body, marker == _START_OF_PROGRESSIVE)
            if frame is None:
                return None
        elif marker == _START_OF_SCAN:
            return frame if frame is not None and _is_plain_scan(data, position, body, frame) else None
        elif marker not in _TABLES_AND_COMMENTS or (marker == _ADOBE and not _is_ycbcr(body)):
            return None
    return None


def _read_frame(body: bytes, is_progressive: bool) -> PlainJpeg | None:
    if len(body) < 6:
        return None
    bits, height, width, num_components = struct.unpack_from(">BHHB", body)
    if bits != 8 or not height or not width or num_components not in (1, 3) or len(body) != 6 + 3 * num_components:
        return None
    identifiers = tuple(body[6::3])
    sampling = [(factors >> 4, factors & 15) for factors in body[7::3]]
    if num_components == 3 and (identifiers == tuple(b"RGB") or sampling[1:] != [(1, 1), (1, 1)]):
        return None
    # A lone component's factors say nothing, but decoders round its size up by them in different ways.
    if sampling[0] not in (_SAMPLING if num_components == 3 else {(1, 1)}):
        return None
    return PlainJpeg(width, height, num_components, is_progressive)


def _is_plain_scan(data: bytes, position: int, body: bytes, frame: PlainJpeg) -> bool:
    is_whole = frame.is_progressive or (body[:1] == bytes([frame.num_components]))
    return is_whole and data.rfind(_END_OF_IMAGE) >= position


def _is_ycbcr(adobe: bytes) -> bool:
    """Other programs use the segment too."""
    return not adobe.startswith(b"Adobe") or adobe[11:12] == bytes([_YCBCR])
