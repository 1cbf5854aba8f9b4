"""Sizes, resizing, patches and frame choice, against the processors of transformers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_smart_resize

from triptych.errors import InvalidRequest, ModelError
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.processing import ImageProcessing, VideoProcessing, smart_resize
from triptych.models.qwen2_5_vl.processing.resize import resize_frames, resize_frames_float

# preprocessor_config.json as published with Qwen2.5-VL-3B-Instruct.
PUBLISHED = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
# One level of 255 in units of the normalised value, for the channel with the smallest deviation.
ONE_LEVEL = 1 / 255 / 0.26130258


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    return tmp_path


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth gradients with hard edges and noise: [height, width, 3] uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    values = np.stack([rows * 2 % 256, columns * 3 % 256, (rows // 9 + columns // 7) % 2 * 255], axis=-1)
    return np.clip(values + rng.integers(-20, 20, values.shape), 0, 255).astype(np.uint8)


def frames_of(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


@settings(max_examples=500, deadline=None)
@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    limits=st.sampled_from([(3136, 12845056), (56 * 56, 28 * 28 * 1280), (100352, 602112), (784, 784 * 4)]),
)
def test_smart_resize_equals_transformers(height: int, width: int, limits: tuple[int, int]) -> None:
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(InvalidRequest):
            smart_resize(height, width, 28, *limits)
        return
    assert smart_resize(height, width, 28, *limits) == reference_smart_resize(height, width, 28, *limits)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (10, 2001), (-3, 5)])
def test_impossible_sizes(height: int, width: int) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        smart_resize(height, width, 28, 3136, 12845056)


# Pillow resizes rows first where that is less work, torch columns first: next to a hard edge the values differ then.
@pytest.mark.parametrize(
    ("height", "width", "max_levels"),
    [
        (112, 168, 0.01),
        (100, 331, 1.01),
        (1, 1, 1.01),
        (40, 30, 1.01),
        (1200, 70, 1.01),
        (640, 480, 2.01),
        (480, 640, 18.01),
    ],
)
def test_picture_equals_transformers_within_rounding(folder: Path, height: int, width: int, max_levels: float) -> None:
    processing = ImageProcessing.from_folder(folder)
    array = picture(height, width)
    reference = AutoImageProcessor.from_pretrained(folder, backend="pil")(Image.fromarray(array), return_tensors="pt")
    grid = processing.image_grid(height, width)
    assert [grid.t, grid.h, grid.w] == reference["image_grid_thw"][0].tolist()
    patches = processing.patchify(frames_of(array))
    assert patches.dtype == torch.float32
    assert patches.shape == (grid.num_patches, 1176)
    difference = (patches - reference["pixel_values"]).abs()
    assert difference.max() < max_levels * ONE_LEVEL
    assert difference.mean() < 0.35 * ONE_LEVEL


def test_picture_of_final_size_is_not_resampled(folder: Path) -> None:
    array = picture(112, 168)
    expected = Qwen2VLImageProcessorPil()(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    patches = ImageProcessing.from_folder(folder).patchify(frames_of(array))
    torch.testing.assert_close(patches, expected, atol=1e-5, rtol=0)


def test_float_resize_of_accelerators_is_within_two_levels() -> None:
    frames = frames_of(picture(97, 331))
    for size in ((112, 336), (56, 168), (280, 980)):
        exact, through_float = resize_frames(frames, *size), resize_frames_float(frames, *size)
        assert (exact.int() - through_float.int()).abs().max() <= 2


def test_video_patches_by_hand(folder: Path) -> None:
    """Each patch holds its two frames; the odd last frame is repeated; a still video is a repeated picture."""
    video = VideoProcessing.from_folder(folder)
    frames = torch.cat([frames_of(picture(56, 84, seed)) for seed in range(5)])
    grid = video.video_grid(5, 56, 84)
    assert grid == Grid(3, 4, 6)
    patches = video.patchify(frames).unflatten(1, (3, 2, 14, 14)).unflatten(0, (3, 2, 3, 2, 2))
    mean, std = torch.tensor(video.mean), torch.tensor(video.std)
    normalised = (frames / 255 - mean[:, None, None]) / std[:, None, None]
    for step, frame in ((0, 0), (1, 3), (2, 4)):
        # Cell (1, 2), patch (0, 1) inside it: patch row 2, patch column 5.
        expected = normalised[frame, :, 28:42, 70:84]
        torch.testing.assert_close(patches[step, 1, 2, 0, 1, :, frame % 2], expected, atol=1e-5, rtol=0)
    assert torch.equal(patches[2, ..., 0, :, :], patches[2, ..., 1, :, :])
    still = ImageProcessing.from_folder(folder).patchify(frames[:1])
    assert torch.equal(video.patchify(frames[:1].expand(2, -1, -1, -1)), still)


@pytest.mark.parametrize("shape", [(0, 3, 28, 28), (1, 1, 28, 28), (3, 28, 28)])
def test_frames_of_another_shape_are_refused(folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="expected uint8"):
        VideoProcessing.from_folder(folder).patches_of_size(torch.zeros(shape, dtype=torch.uint8), 28, 28)


def reference_sample_frames(num_frames: int, fps: float, target_fps: float, lowest: int, highest: int) -> list[int]:
    """The choice of transformers 5.23's Qwen2VLVideoProcessor, whose module needs torchvision to be imported."""
    highest = math.floor(min(highest, num_frames) / 2) * 2
    wanted = min(max(num_frames / fps * target_fps, lowest), highest, num_frames)
    return torch.arange(0, num_frames, num_frames / (math.floor(wanted / 2) * 2)).int().tolist()


@settings(max_examples=500, deadline=None)
@given(num_frames=st.integers(2, 5000), fps=st.sampled_from([1.0, 12.5, 24000 / 1001, 24.0, 25.0, 30.0, 59.94]))
def test_frame_choice_equals_transformers(num_frames: int, fps: float) -> None:
    video = video_processing()
    sampled = video.sample_frames(num_frames, fps)
    expected = reference_sample_frames(num_frames, fps, 2.0, 4, 768)
    assert sampled == expected[: len(sampled)]
    assert len(expected) - len(sampled) in (0, 1)
    assert len(sampled) % 2 == 0
    assert 0 <= min(sampled) <= max(sampled) < num_frames


def video_processing(**changes: object) -> VideoProcessing:
    video = VideoProcessing(
        min_pixels=100352,
        max_pixels=602112,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        fps=2.0,
        min_frames=4,
        max_frames=768,
        cap_pixels_per_frame=False,
        max_video_tokens=128_000,
    )
    return replace(video, **changes)


def test_frame_choice_by_hand() -> None:
    video = video_processing()
    assert video.sample_frames(60, 30.0) == [0, 15, 30, 45]
    assert video.sample_frames(8, 2.0) == list(range(8))
    assert video.sample_frames(3, 30.0) == [0, 1]
    assert video.sample_frames(1, 30.0) == [0]
    assert len(video.sample_frames(100_000, 25.0)) == 768
    assert video.second_per_grid_t(4, 60, 30.0) == 1.0
    assert video.second_per_grid_t(2, 3, 30.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("num_frames", "fps"), [(0, 30.0), (10, 0.0), (10, float("nan")), (10, -1.0)])
def test_frame_choice_refuses_nonsense(num_frames: int, fps: float) -> None:
    with pytest.raises(InvalidRequest):
        video_processing().sample_frames(num_frames, fps)


def test_pixel_cap_of_long_videos() -> None:
    """From Qwen2VLVideoProcessor.resize: an even share of 90 % of the tokens, at least 1.05 x the smallest frame."""
    free, capped = video_processing(), video_processing(cap_pixels_per_frame=True)
    assert free.video_grid(768, 1080, 1920) == Grid(384, 40, 72)
    share = int(128_000 * 28 * 28 * 0.9) * 2 // 768
    height, width = reference_smart_resize(1080, 1920, 28, 100352, share)
    assert capped.video_grid(768, 1080, 1920) == Grid(384, height // 14, width // 14)
    floor = int(100352 * 1.05)
    height, width = reference_smart_resize(1080, 1920, 28, 100352, floor)
    assert capped.video_grid(4000, 1080, 1920) == Grid(2000, height // 14, width // 14)


def test_layouts_of_settings(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="image_processor"):
        ImageProcessing.from_folder(tmp_path)
    Qwen2VLImageProcessorPil(min_pixels=784, max_pixels=78400).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert "min_pixels" not in saved
    image = ImageProcessing.from_folder(tmp_path)
    assert (image.min_pixels, image.max_pixels) == (784, 78400)
    # Without settings of its own a video has those of pictures, as in transformers.
    assert VideoProcessing.from_folder(tmp_path).max_pixels == 78400
    (tmp_path / "video_preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 1568, "longest_edge": 31360}, "fps": 4, "max_frames": 16})
    )
    video = VideoProcessing.from_folder(tmp_path)
    assert (video.min_pixels, video.max_pixels, video.fps, video.max_frames) == (1568, 31360, 4.0, 16)
    nested = {"image_processor": {"min_pixels": 3136}, "video_processor": {"min_frames": 6}, "processor_class": "Q"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert ImageProcessing.from_folder(tmp_path).max_pixels == 28 * 28 * 1280
    assert VideoProcessing.from_folder(tmp_path).min_pixels == 128 * 28 * 28
    assert VideoProcessing.from_folder(tmp_path).min_frames == 6


@pytest.mark.parametrize("change", [{"do_normalize": False}, {"resample": 2}])
def test_settings_that_would_change_pixels_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED | change))
    with pytest.raises(ModelError, match=next(iter(change))):
        ImageProcessing.from_folder(tmp_path)
