"""MP4 and MOV files (ISO/IEC 14496-12) before libav sees them: no track but video, no table that promises too much.

When it opens a file, libav takes up to 70 bytes for every sample that a table announces, and again for every edit that
shows it. A table needs no entry for each sample if all have one size, so that two kilobytes can ask for gigabytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from triptych.errors import InvalidRequest, RequestTooLarge

# Frames that edit lists cut away are in the tables too, so these are above any sensible limits.max_video_frames.
MAX_SAMPLES = 1_000_000
MAX_BOXES = 100_000

# Names of tables -> where in the box, counted from its name, the number of its entries stands.
_SAMPLE_TABLES = {b"stsz": 12, b"stz2": 12, b"trun": 8}
_EDIT_TABLES = {b"elst": 8}
_COMPRESSED_HEADER = b"cmov"


@dataclass(frozen=True)
class _Box:
    name: bytes
    name_at: int
    content_at: int
    end: int


def tame_mp4(data: bytes, field: str) -> bytes:
    """`data` with all tracks but video hidden; `data` itself when there are none.

    Audio has millions of samples where a video has thousands of frames, and would be read along for nothing. Raises
    RequestTooLarge for more than MAX_SAMPLES (over all edits) or MAX_BOXES, InvalidRequest for a compressed header.
    """
    boxes = list(_boxes(data, 0, len(data), field))
    hidden = [track for box in boxes if box.name == b"moov" for track in _other_tracks(data, box, field)]
    _check_tables(data, _regions_read(boxes, hidden, len(data)), field)
    if not hidden:
        return data
    tamed = bytearray(data)
    for track in hidden:
        # Not "free", into which libav looks.
        tamed[track.name_at : track.name_at + 4] = b"skip"
    return bytes(tamed)


def _boxes(data: bytes, start: int, end: int, field: str) -> Iterator[_Box]:
    """The boxes that stand one after the other from `start` on; what follows a broken one is left out."""
    for _ in range(MAX_BOXES):
        if end - start < 8:
            return
        length, name = struct.unpack_from(">I4s", data, start)
        content_at = start + 8
        if length == 1 and end - start >= 16:
            (length,) = struct.unpack_from(">Q", data, content_at)
            content_at += 8
        box_end = min(start + length, end) if length else end
        if box_end < content_at:
            return
        yield _Box(name, start + 4, content_at, box_end)
        start = box_end
    raise RequestTooLarge(f"{field} has more than {MAX_BOXES} boxes", field=field)


def _other_tracks(data: bytes, header: _Box, field: str) -> Iterator[_Box]:
    for track in _boxes(data, header.content_at, header.end, field):
        if track.name == b"trak" and _handler(data, track, field) not in (b"vide", b""):
            yield track


def _handler(data: bytes, track: _Box, field: str) -> bytes:
    """What a track is for: "vide", "soun", ...; nothing when it does not say."""
    for media in _boxes(data, track.content_at, track.end, field):
        if media.name != b"mdia":
            continue
        for box in _boxes(data, media.content_at, media.end, field):
            if box.name == b"hdlr":
                return data[box.content_at + 8 : box.content_at + 12]
    return b""


def _regions_read(boxes: list[_Box], hidden: list[_Box], num_bytes: int) -> Iterator[tuple[int, int]]:
    """All bytes but frames (the content of top-level "mdat" boxes) and hidden tracks, as (start, end)."""
    start = 0
    for box in sorted([*(box for box in boxes if box.name == b"mdat"), *hidden], key=lambda box: box.name_at):
        yield start, box.content_at
        start = box.end
    yield start, num_bytes


def _check_tables(data: bytes, regions: Iterator[tuple[int, int]], field: str) -> None:
    """Tables are looked for by name alone: libav finds them in many places of the tree."""
    num_samples = num_edits = 0
    for start, end in regions:
        if data.find(_COMPRESSED_HEADER, start, end) >= 0:
            raise InvalidRequest(f"{field} has a compressed header (cmov), expected a plain one", field=field)
        num_samples += _num_entries(data, start, end, _SAMPLE_TABLES, field)
        num_edits += _num_entries(data, start, end, _EDIT_TABLES, field)
    if num_samples * max(num_edits, 1) > MAX_SAMPLES:
        raise RequestTooLarge(
            f"{field} announces {num_samples} frames in its tables and {num_edits} edits of them, "
            f"expected a product of at most {MAX_SAMPLES}",
            field=field,
        )


def _num_entries(data: bytes, start: int, end: int, tables: dict[bytes, int], field: str) -> int:
    num_entries = 0
    for name, count_at in tables.items():
        if data.count(name, start, end) > MAX_BOXES:
            raise RequestTooLarge(f"{field} has more than {MAX_BOXES} boxes", field=field)
        place = data.find(name, start, end)
        while place >= 0:
            num_entries += int.from_bytes(data[place + count_at : place + count_at + 4], "big")
            place = data.find(name, place + 4, end)
    return num_entries
