"""Videos that come as a list of image files."""

import math
from collections.abc import Sequence

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest
from triptych.media.bounds import check_num_bytes, check_num_frames
from triptych.media.image import probe_image
from triptych.media.shapes import VideoShape


def probe_frames(
    frames: Sequence[bytes], limits: LimitsSection, field: str, *, frames_per_second: float = 0.0
) -> VideoShape:
    """Size, number and rate of still encoded frames. All must have one size, after EXIF orientation.

    Raises InvalidRequest that names the frame at fault (`<field>.frames[3]`), RequestTooLarge over
    limits.max_video_frames, limits.max_video_bytes (all frames together) or a limit of pictures.
    """
    check_num_frames(len(frames), limits, f"{field}.frames")
    num_bytes = sum(len(frame) for frame in frames)
    check_num_bytes(
        num_bytes, limits.max_video_bytes, "limits.max_video_bytes", "image files as frames", f"{field}.frames"
    )
    if not math.isfinite(frames_per_second) or frames_per_second < 0:
        rate_field = f"{field}.frames_per_second"
        raise InvalidRequest(f"{rate_field} is {frames_per_second}, expected a number >= 0", field=rate_field)
    first = probe_image(frames[0], limits, f"{field}.frames[0]")
    for index, frame in enumerate(frames[1:], start=1):
        shape = probe_image(frame, limits, f"{field}.frames[{index}]")
        if shape != first:
            raise InvalidRequest(
                f"{field}.frames[{index}] is {shape.width}x{shape.height} pixels, "
                f"expected {first.width}x{first.height} as frame 0",
                field=f"{field}.frames[{index}]",
            )
    return VideoShape(first.width, first.height, len(frames), frames_per_second)
