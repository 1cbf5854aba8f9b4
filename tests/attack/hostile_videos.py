"""Video files made to do harm: real MP4 files, one of whose tables lies."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
from attack_helpers import MIB

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf")


@dataclass(frozen=True)
class HostileVideo:
    """`says` must be part of the message."""

    name: str
    make: Callable[[], bytes]
    says: tuple[str, ...]


@cache
def video(
    num_frames: int = 8,
    size: int = 56,
    container: str = "mp4",
    codec: str = "libx264",
    is_fragmented: bool = False,
    rate: int = 4,
) -> bytes:
    """A square that moves to the right."""
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"} if is_fragmented else {}
    with av.open(buffer, "w", format=container, options=options) as output:
        stream: Any = output.add_stream(codec, rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for index in range(num_frames):
            pixels = np.full((size, size, 3), 240, dtype=np.uint8)
            left = index * (size - 16) // num_frames
            pixels[20:36, left : left + 16] = (220, 30, 30)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@cache
def video_with_sound(codec: str = "aac", container: str = "mp4", is_fragmented: bool = False) -> bytes:
    """The same video beside two seconds of silence; the sound comes first."""
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"} if is_fragmented else {}
    with av.open(io.BytesIO(video())) as source, av.open(buffer, "w", format=container, options=options) as output:
        sound: Any = output.add_stream(codec, rate=48_000, layout="stereo")
        picture = output.add_stream_from_template(source.streams.video[0])
        for index in range(94):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1_024), np.float32), format="fltp", layout="stereo")
            frame.rate, frame.pts = 48_000, index * 1_024
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                output.mux(packet)
    return buffer.getvalue()


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def table(*numbers: int) -> bytes:
    """The content of a table's box: version and flags 0, then 32-bit numbers."""
    return struct.pack(f">{1 + len(numbers)}I", 0, *numbers)


def with_boxes(data: bytes, contents: Mapping[bytes, bytes | None]) -> bytes:
    """`data` with other contents for the boxes named, at any depth; None takes the box away."""
    patched, position = [], 0
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + length]
        position += length
        if name in contents:
            new = contents[name]
            patched += [] if new is None else [box(name, new)]
        else:
            patched.append(box(name, with_boxes(content, contents) if name in CONTAINERS else content))
    return b"".join(patched)


def content(data: bytes, name: bytes) -> bytes:
    """Of the first box of that name; the header of a file alone is searched."""
    place = data.index(name, data.index(b"moov"))
    return data[place + 4 : place - 4 + int.from_bytes(data[place - 4 : place], "big")]


def many_samples(num_samples: int) -> bytes:
    """Two kilobytes; libav would take 70 bytes for each sample."""
    return with_boxes(
        video(),
        {
            b"stsz": table(1, num_samples),
            b"stsc": table(1, 1, num_samples, 1),
            b"stts": table(1, num_samples, 512),
            b"ctts": None,
        },
    )


def slow_video(number: int) -> bytes:
    """1,200 frames of 2,800x2,800, just under limits.max_video_pixels, all of them the same bytes of a small file.

    Another file for each number.
    """
    data = video(num_frames=1, size=2_800)
    [frame_bytes] = struct.unpack(">I", content(data, b"stsz")[12:16] or content(data, b"stsz")[4:8])
    offset = content(data, b"stco")[8:12]
    tables = {
        b"stsz": table(frame_bytes, 1_200),
        b"stsc": table(1, 1, 1, 1),
        b"stco": table(1_200) + offset * 1_200,
        b"stts": table(1, 1_200, 4_096),
        b"ctts": None,
        b"stss": None,
        b"edts": None,
    }
    return with_boxes(data, tables) + box(b"free", number.to_bytes(4, "big"))


def many_edits() -> bytes:
    """A thousand edits, each of which shows half a million samples."""
    edit = struct.pack(">IiI", 1_000_000, 0, 0x10000)
    return with_boxes(many_samples(500_000), {b"elst": table(1_000) + edit * 1_000})


def many_fragment_samples() -> bytes:
    return with_boxes(video(is_fragmented=True), {b"trun": table(100_000_000)})


def compressed_header() -> bytes:
    return box(b"ftyp", b"qt  " + bytes(4)) + box(
        b"moov", box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", bytes(64)))
    )


def hidden_tables() -> bytes:
    """The moov box disguised as free space, into which libav looks."""
    return many_samples(50_000_000).replace(b"moov", b"free")


def absurd_size(size: int) -> bytes:
    """Uncompressed frames, whose size is what the header says."""
    data = video(container="avi", codec="rawvideo")
    return data.replace(struct.pack("<II", 56, 56), struct.pack("<II", size, size))


def many_boxes() -> bytes:
    return video() + box(b"free", b"") * (2 * MIB // 8)


def playlist() -> bytes:
    return b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"


HOSTILE_VIDEOS = (
    HostileVideo("cut mp4", lambda: video()[:-300], ("not a readable video",)),
    HostileVideo("cut header", lambda: video()[:100], ("not a readable video",)),
    HostileVideo("magic alone", lambda: video()[:8], ("not a readable video",)),
    HostileVideo("zeros behind the magic", lambda: video()[:32] + bytes(MIB), ("not a readable video",)),
    HostileVideo(
        "no frames", lambda: with_boxes(video(), {b"stsz": table(0, 0), b"stts": table(0), b"ctts": None}), ()
    ),
    HostileVideo("absurd size", lambda: absurd_size(60_000), ("limits.max_image_pixels",)),
    HostileVideo("size without pixels", lambda: absurd_size(0), ()),
    HostileVideo("many samples", lambda: many_samples(50_000_000), ("50000000 frames",)),
    HostileVideo("most samples", lambda: many_samples(2**32 - 1), ("4294967295 frames",)),
    HostileVideo("many edits", many_edits, ("1000 edits",)),
    HostileVideo("many fragment samples", many_fragment_samples, ("100000000 frames",)),
    HostileVideo("compressed header", compressed_header, ("compressed header",)),
    HostileVideo("hidden tables", hidden_tables, ("50000000 frames",)),
    HostileVideo("many boxes", many_boxes, ("boxes",)),
    HostileVideo(
        "too many frames", lambda: video(4_100, 32, codec="mpeg4"), ("4097 frames or more", "limits.max_video_frames")
    ),
    HostileVideo("empty", lambda: b"", ("is empty",)),
    HostileVideo("text", lambda: b"which way does it move?", ("expected a video file", "MP4")),
    HostileVideo("playlist", playlist, ("expected a video file",)),
    HostileVideo("too many bytes", lambda: bytes(57 * MIB), ("58720256", "limits.max_video_bytes")),
)
