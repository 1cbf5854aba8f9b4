"""Pictures and videos in the text of a request: data: URLs, bounded before they are decoded."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.v1 import common_pb2, inference_pb2

DATA = "data:"
FRAMES_TYPE = "video/jpeg"
_BASE64 = ";base64"
_MAX_HEADER_LENGTH = 256


@dataclass(frozen=True)
class RemoteMedia:
    """Media that still have to be fetched; `target` gets the bytes in its field `data`."""

    url: str
    field: str
    max_bytes: int
    target: inference_pb2.Image | inference_pb2.Video


def fill_image(image: inference_pb2.Image, url: str, field: str, limits: LimitsSection) -> RemoteMedia | None:
    """Puts the bytes of a data: URL into `image`, or says what is to be fetched. Raises InvalidRequest."""
    if not _is_data(url):
        return RemoteMedia(url, field, limits.max_image_bytes, image)
    _, text = _split(url, field)
    image.data = _decode(text, limits.max_image_bytes, "limits.max_image_bytes", field)
    return None


def fill_video(
    video: inference_pb2.Video, url: str, frames_per_second: float, field: str, limits: LimitsSection
) -> RemoteMedia | None:
    """The same for a video: a file, or the frames of data:video/jpeg;base64,FRAME,FRAME in order."""
    if not _is_data(url):
        return RemoteMedia(url, field, limits.max_video_bytes, video)
    kind, text = _split(url, field)
    if kind != FRAMES_TYPE:
        video.data = _decode(text, limits.max_video_bytes, "limits.max_video_bytes", field)
        return None
    num_frames = text.count(",") + 1
    if num_frames > limits.max_video_frames:
        raise RequestTooLarge(
            f"{field} has {num_frames} frames, at most {limits.max_video_frames} are allowed (limits.max_video_frames)",
            field=field,
        )
    _check_size(text, limits.max_video_bytes, "limits.max_video_bytes", field)
    frames = [_decode(frame, limits.max_image_bytes, "limits.max_image_bytes", field) for frame in text.split(",")]
    video.frames.CopyFrom(common_pb2.VideoFrames(frames=frames, frames_per_second=frames_per_second))
    return None


def _is_data(url: str) -> bool:
    return url[: len(DATA)].lower() == DATA


def _split(url: str, field: str) -> tuple[str, str]:
    """Media type in lower case and what stands behind the comma. Only base64: bytes as percent-escapes are three
    times as long and nobody sends them."""
    end = url.find(",", 0, _MAX_HEADER_LENGTH)
    header = url[len(DATA) : end].lower() if end >= 0 else ""
    if not header.endswith(_BASE64):
        raise InvalidRequest(f"{field} is no data: URL in base64, expected data:TYPE;base64,BYTES", field=field)
    return header.partition(";")[0], url[end + 1 :]


def _check_size(text: str, max_bytes: int, setting: str, field: str) -> None:
    num_bytes = len(text) // 4 * 3
    if num_bytes > max_bytes + 3:
        raise RequestTooLarge(
            f"{field} holds about {num_bytes} bytes, at most {max_bytes} are allowed ({setting})", field=field
        )


def _decode(text: str, max_bytes: int, setting: str, field: str) -> bytes:
    _check_size(text, max_bytes, setting, field)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{field} is no base64: {error}", field=field) from None
