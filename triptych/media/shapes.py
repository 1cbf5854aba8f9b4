"""What a header says about a picture or a video."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageShape:
    """Size in pixels after the EXIF orientation was applied."""

    width: int
    height: int


@dataclass(frozen=True)
class VideoShape:
    """Size of a frame in pixels, number of frames in the file, and their rate.

    `frames_per_second` is 0 for a list of frames that says no rate: they count as already sampled.
    """

    width: int
    height: int
    num_frames: int
    frames_per_second: float
