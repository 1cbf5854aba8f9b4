"""Router and encoder learn the same grid from the same header."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from media_samples import encoded, oriented, picture, video

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest
from triptych.media.layout import MediaProcessing, media_layout
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.v1 import common_pb2

LIMITS = LimitsSection()
IMAGE, VIDEO = common_pb2.MEDIA_KIND_IMAGE, common_pb2.MEDIA_KIND_VIDEO


@pytest.fixture
def processing(tmp_path: Path) -> MediaProcessing:
    settings = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 64, "patch_size": 14, "temporal_patch_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return MediaProcessing.from_folder(tmp_path)


def test_picture(processing: MediaProcessing) -> None:
    layout = media_layout(common_pb2.Media(kind=IMAGE, data=encoded(picture(90, 60))), processing, LIMITS, "image")
    assert (layout.width, layout.height, layout.grid) == (90, 60, Grid(1, 4, 6))
    assert (layout.frame_indices, layout.second_per_grid_t) == ((0,), 0.0)


def test_turned_picture(processing: MediaProcessing) -> None:
    media = common_pb2.Media(kind=IMAGE, data=oriented(picture(90, 60), 6, "JPEG"))
    assert media_layout(media, processing, LIMITS, "image").grid == Grid(1, 6, 4)


def test_one_pixel_is_scaled_up(processing: MediaProcessing) -> None:
    media = common_pb2.Media(kind=IMAGE, data=encoded(picture(1, 1)))
    assert media_layout(media, processing, LIMITS, "image").grid == Grid(1, 2, 2)


def test_video_file_is_sampled(processing: MediaProcessing) -> None:
    media = common_pb2.Media(kind=VIDEO, data=video(40, 64, 90, 8))
    layout = media_layout(media, processing, LIMITS, "video")
    assert layout.frame_indices == tuple(range(0, 40, 4))  # 5 s at 2 frames a second
    assert layout.grid == Grid(5, 6, 4)
    assert layout.second_per_grid_t == pytest.approx(1.0)


def test_options_change_sampling_and_size(processing: MediaProcessing) -> None:
    options = common_pb2.ProcessingOptions(frames_per_second=1.0, max_pixels=28 * 28)
    media = common_pb2.Media(kind=VIDEO, data=video(40, 64, 64, 8), options=options)
    layout = media_layout(media, processing, LIMITS, "video")
    assert layout.grid == Grid(2, 2, 2)
    assert layout.second_per_grid_t == pytest.approx(2 / (4 / 40 * 8))


@pytest.mark.parametrize(
    ("rate", "num_sampled", "second_per_grid_t"),
    [(0.0, 7, 1.0), (7.0, 4, 2 / 4.0), (1.0, 6, 2 / (6 / 7))],
)
def test_frames(processing: MediaProcessing, rate: float, num_sampled: int, second_per_grid_t: float) -> None:
    """Without a rate all frames are taken, at the model's own rate; with one they are sampled as a file's are."""
    frames = common_pb2.VideoFrames(frames=[encoded(picture(60, 60))] * 7, frames_per_second=rate)
    layout = media_layout(common_pb2.Media(kind=VIDEO, frames=frames), processing, LIMITS, "video")
    assert len(layout.frame_indices) == num_sampled
    assert layout.grid == Grid(-(-num_sampled // 2), 4, 4)
    assert layout.second_per_grid_t == pytest.approx(second_per_grid_t)


def test_default_options_say_what_the_checkpoint_says(processing: MediaProcessing) -> None:
    for kind in (IMAGE, VIDEO):
        options = processing.default_options(kind)
        assert options.max_pixels == 28 * 28 * 64
        assert processing.image_with(options) == processing.image
        assert kind == IMAGE or processing.video_with(options) == processing.video


@pytest.mark.parametrize(
    "media",
    [
        common_pb2.Media(data=b"x"),
        common_pb2.Media(kind=IMAGE),
        common_pb2.Media(kind=VIDEO),
        common_pb2.Media(kind=IMAGE, frames=common_pb2.VideoFrames(frames=[b"x"])),
    ],
)
def test_media_without_kind_or_payload(processing: MediaProcessing, media: common_pb2.Media) -> None:
    with pytest.raises(InvalidRequest, match="expected an image with data, or a video") as caught:
        media_layout(media, processing, LIMITS, "messages[0].parts[0].image")
    assert caught.value.field == "messages[0].parts[0].image"


def test_measuring_needs_neither_torch_nor_pyav() -> None:
    code = "import sys, triptych.media; print(sorted({'torch', 'av', 'transformers'} & sys.modules.keys()))"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr
