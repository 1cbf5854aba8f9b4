"""PNG files may carry their metadata (EXIF orientation) behind the pixels; a header reader wants it in front."""

import struct

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK_OVERHEAD = 12  # length, type, CRC
_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
# Encoders cut pixels into chunks of 8 KiB or more.
MAX_CHUNKS = 65_536


def move_metadata_first(data: bytes) -> bytes:
    """The same PNG with the metadata chunks that follow the pixels put before them; `data` itself when there are none.

    The pixels stay untouched. A file that ends inside a chunk keeps its end as it is, for the decoder to complain.
    Raises ValueError for more than MAX_CHUNKS.
    """
    first_pixels = -1
    num_chunks = 0
    late: list[bytes] = []
    kept: list[bytes] = []
    position = kept_from = len(_SIGNATURE)
    while position + _CHUNK_OVERHEAD <= len(data):
        num_chunks += 1
        if num_chunks > MAX_CHUNKS:
            raise ValueError(f"it has more than {MAX_CHUNKS} chunks")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + _CHUNK_OVERHEAD + length
        if end > len(data) or kind == b"IEND":
            break
        if kind == b"IDAT" and first_pixels < 0:
            first_pixels = kept_from = position
        elif kind in _METADATA and first_pixels >= 0:
            late.append(data[position:end])
            kept.append(data[kept_from:position])
            kept_from = end
        position = end
    if not late:
        return data
    return b"".join([data[:first_pixels], *late, *kept, data[kept_from:]])
