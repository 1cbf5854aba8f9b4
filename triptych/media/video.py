"""Video files: opened from memory through an allow-list of containers, counted by demuxing, never decoded here."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from triptych.config import LimitsSection
from triptych.errors import ConfigurationError, InvalidRequest
from triptych.media.bounds import check_frames, check_num_bytes, check_size
from triptych.media.mp4 import tame_mp4
from triptych.media.shapes import VideoShape

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


def probe_video(data: bytes, limits: LimitsSection, field: str) -> VideoShape:
    """Frame size, exact number of frames and their rate, from headers and packets.

    Rotation in the container is not applied, as in transformers. Raises InvalidRequest for data that is no video of
    an allowed container, RequestTooLarge over limits.max_video_bytes, limits.max_video_frames or
    limits.max_image_pixels (each frame), ConfigurationError without PyAV (the extra `video`).
    """
    with open_video(data, limits, field) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        rate = _frame_rate(stream, field)
        num_frames = count_frames(container, stream, limits.max_video_frames + 1)
    check_frames(num_frames, width, height, limits, field)
    return VideoShape(width, height, num_frames, rate)


@contextmanager
def open_video(data: bytes, limits: LimitsSection, field: str) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """Opens `data` after the checks on bytes and frame size; gives the container and its first video stream.

    What libav raises inside the `with` becomes InvalidRequest too.
    """
    check_num_bytes(len(data), limits.max_video_bytes, "limits.max_video_bytes", "a video file", field)
    container_format = _container_format(data)
    if container_format is None:
        raise InvalidRequest(
            f"{field} begins with {data[:12]!r}, expected a video file: MP4, MOV, WebM, MKV or AVI", field=field
        )
    av = _import_av()
    if container_format == "mov":
        data = tame_mp4(data, field)
    try:
        with av.open(
            io.BytesIO(data),
            # Never guessed by libav: a playlist would be taken for a video and make it open other files and addresses.
            format=container_format,
            io_open=_refuse_to_open,
            options={"max_pixels": str(limits.max_image_pixels), "protocol_whitelist": ""},
        ) as container:
            stream = _video_stream(container, limits, field)
            yield container, stream
    except (av.FFmpegError, MemoryError, ValueError) as error:
        raise InvalidRequest(f"{field} is not a readable video: {error}", field=field) from error


def count_frames(container: "InputContainer", stream: "VideoStream", stop_at: int) -> int:
    """Frames that decoding would show, at most `stop_at`. Reads the container on from where it stands."""
    is_vp8 = stream.codec_context.name in ("vp8", "libvpx")
    num_frames = 0
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        # VP8 keeps frames that are only references in packets of their own: show_frame is bit 4 (RFC 6386, 9.1).
        if is_vp8 and not bytes(packet)[0] >> 4 & 1:
            continue
        num_frames += 1
        if num_frames >= stop_at:
            break
    return num_frames


def _video_stream(container: "InputContainer", limits: LimitsSection, field: str) -> "VideoStream":
    if not container.streams.video:
        raise InvalidRequest(f"{field} has no video stream", field=field)
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise InvalidRequest(f"{field} is coded in a way that this build of libav cannot decode", field=field)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width == 0 or height == 0:
        # libav leaves the size empty when it is over max_pixels.
        raise InvalidRequest(
            f"{field} has no frame size that can be read, "
            f"expected one of at most {limits.max_image_pixels} pixels (limits.max_image_pixels)",
            field=field,
        )
    check_size(width, height, limits, field)
    return stream


def _frame_rate(stream: "VideoStream", field: str) -> float:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and math.isfinite(rate) and rate > 0:
            return float(rate)
    raise InvalidRequest(f"{field} says no frame rate, expected one above 0", field=field)


def _container_format(data: bytes) -> str | None:
    """libav's name for the container, by its first bytes."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    return None


def _refuse_to_open(url: str, flags: int, options: dict[str, Any]) -> Any:
    raise PermissionError(f"a video file may not refer to another file, found {url!r}")


def _import_av() -> Any:
    try:
        import av
    except ImportError:
        raise ConfigurationError(
            "video files need PyAV, which is not installed: pip install 'triptych[video]' "
            "(a video as image frames works without it)",
            field="video",
        ) from None
    return av
