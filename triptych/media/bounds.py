"""Checks on sizes, made before anything is decoded. Each message says what was found and which setting is the limit."""

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge

# Qwen2-VL's smart_resize refuses pictures that are longer than this many times their width, or the reverse.
MAX_ASPECT_RATIO = 200


def check_num_bytes(num_bytes: int, limit: int, setting: str, what: str, field: str) -> None:
    """Raises InvalidRequest when there is nothing, RequestTooLarge over `limit` bytes."""
    if num_bytes == 0:
        raise InvalidRequest(f"{field} is empty, expected {what}", field=field)
    if num_bytes > limit:
        raise RequestTooLarge(f"{field} has {num_bytes} bytes, expected at most {limit} ({setting})", field=field)


def check_size(width: int, height: int, limits: LimitsSection, field: str) -> None:
    """Raises InvalidRequest for a side below 1 or an aspect ratio over 200, RequestTooLarge for too many pixels."""
    if min(width, height) < 1:
        raise InvalidRequest(f"{field} is {width}x{height} pixels, expected both sides to be at least 1", field=field)
    if width * height > limits.max_image_pixels:
        raise RequestTooLarge(
            f"{field} is {width}x{height} = {width * height} pixels, "
            f"expected at most {limits.max_image_pixels} (limits.max_image_pixels)",
            field=field,
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InvalidRequest(
            f"{field} is {width}x{height} pixels, expected the longer side to be "
            f"at most {MAX_ASPECT_RATIO} times the shorter one",
            field=field,
        )


def check_frames(num_frames: int, width: int, height: int, limits: LimitsSection, field: str) -> None:
    """As `check_num_frames`; raises RequestTooLarge also for more than limits.max_video_pixels in all frames together.

    Every frame up to the last one sampled has to be decoded.
    """
    check_num_frames(num_frames, limits, field)
    if num_frames * width * height > limits.max_video_pixels:
        raise RequestTooLarge(
            f"{field} has {num_frames} frames of {width}x{height} = {num_frames * width * height} pixels, "
            f"expected at most {limits.max_video_pixels} (limits.max_video_pixels)",
            field=field,
        )


def check_num_frames(num_frames: int, limits: LimitsSection, field: str) -> None:
    """Raises InvalidRequest without a frame, RequestTooLarge with more than limits.max_video_frames."""
    if num_frames < 1:
        raise InvalidRequest(f"{field} has no frames, expected at least 1", field=field)
    if num_frames > limits.max_video_frames:
        raise RequestTooLarge(
            f"{field} has {num_frames} frames or more, "
            f"expected at most {limits.max_video_frames} (limits.max_video_frames)",
            field=field,
        )
