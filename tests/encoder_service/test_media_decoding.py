"""Decoded pixels are those that transformers works on; broken data is named."""

import io

import numpy as np
import pytest
import torch
from media_samples import encoded, oriented, picture, video, video_frames
from PIL import Image
from transformers.image_utils import load_image

from encoder_service.media import decode_frames, decode_image, decode_video
from triptych.config import LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge

LIMITS = LimitsSection()


def reference(data: bytes) -> torch.Tensor:
    pixels = np.array(load_image(Image.open(io.BytesIO(data))))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("LA", "PNG"),
        ("P", "GIF"),
        ("P", "PNG"),
        ("L", "JPEG"),
        ("1", "PNG"),
        ("I;16", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
    ],
)
def test_pixels_equal_load_image(mode: str, image_format: str) -> None:
    data = encoded(picture(33, 20, mode), image_format)
    pixels = decode_image(data, LIMITS, "image")
    assert pixels.dtype == torch.uint8 and pixels.shape == (1, 3, 20, 33)
    assert torch.equal(pixels, reference(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_orientation(image_format: str, orientation: int) -> None:
    data = oriented(picture(40, 24), orientation, image_format)
    assert torch.equal(decode_image(data, LIMITS, "image"), reference(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_pixels_that_are_cut_off(image_format: str) -> None:
    data = encoded(picture(200, 200), image_format)
    with pytest.raises(InvalidRequest, match="image is not a readable image") as caught:
        decode_image(data[: len(data) // 2], LIMITS, "image")
    assert caught.value.field == "image"


def test_size_is_checked_before_decoding() -> None:
    with pytest.raises(RequestTooLarge, match=r"limits\.max_image_pixels"):
        decode_image(encoded(picture(40, 40)), LimitsSection(max_image_pixels=1_000), "image")


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
@pytest.mark.parametrize("indices", [[0, 3, 6, 9], [9], list(range(10)), [2, 2, 5]])
def test_sampled_frames(container: str, codec: str, indices: list[int]) -> None:
    data = video(10, container=container, codec=codec)
    frames = list(decode_video(data, indices, LIMITS, "video"))
    assert [tuple(frame.shape) for frame in frames] == [(1, 3, 48, 64)] * len(indices)
    greys = [frame.float().mean().item() for frame in frames]
    expected = [video_frames(10)[index].mean() for index in indices]
    assert greys == pytest.approx(expected, abs=6)


def test_hidden_reference_frames_do_not_shift_the_sampled_ones() -> None:
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5", "g": "60"}
    data = video(40, container="webm", codec="libvpx", **options)
    (frame,) = decode_video(data, [39], LIMITS, "video")
    assert frame.float().mean().item() == pytest.approx(video_frames(40)[39].mean(), abs=6)


def test_a_video_shorter_than_its_header_says() -> None:
    with pytest.raises(InvalidRequest, match="ends before frame 12"):
        list(decode_video(video(10), [0, 12], LIMITS, "video"))


def test_frames_are_decoded_one_by_one() -> None:
    frames = [encoded(picture(20, 10, seed=seed)) for seed in range(4)]
    first, last = decode_frames(frames, [0, 3], LIMITS, "video.frames")
    assert torch.equal(first, reference(frames[0])) and torch.equal(last, reference(frames[3]))
    frames[2] = frames[2][:200]
    with pytest.raises(InvalidRequest, match=r"video\.frames\[2\]"):
        list(decode_frames(frames, [0, 2], LIMITS, "video.frames"))
