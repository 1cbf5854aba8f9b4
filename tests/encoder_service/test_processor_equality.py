"""From a file's bytes to patches, by both loaders: what the processors of transformers make of the same file."""

import io
import json

import pytest
import torch
from encoder_samples import video_media
from media_loaders import LIMITS, PillowJpegDecoder, item_of, picture_item
from media_samples import encoded, oriented, picture, video
from PIL import Image
from torch import Tensor
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from encoder_service.items import MediaItem
from encoder_service.media import decode_video
from encoder_service.media.cpu import CpuPatchLoader
from encoder_service.media.gpu import GpuPatchLoader
from encoder_service.media.loader import PatchLoader
from triptych.config import EncoderSection
from triptych.media.layout import MediaProcessing

CPU = torch.device("cpu")
# One of 255 levels, normalised by the smallest deviation of a channel.
ONE_LEVEL = 1 / 255 / 0.26130258
# Sides in multiples of 28 px are not resized: then only the last bits of float32 differ.
FINAL_SIZE, RESIZED = (112, 84), (100, 75)
SETTINGS = {
    "size": {"shortest_edge": 3_136, "longest_edge": 200_704},
    "fps": 2,
    "min_frames": 4,
    "max_frames": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
FILES = {
    "rgb": lambda size: encoded(picture(*size), "PNG"),
    "jpeg": lambda size: encoded(picture(*size), "JPEG"),
    "progressive": lambda size: encoded(picture(*size), "JPEG", progressive=True),
    "on its side": lambda size: oriented(picture(*size[::-1]), 6, "JPEG"),
    "mirrored": lambda size: oriented(picture(*size), 4, "PNG"),
    "cmyk": lambda size: encoded(picture(*size, "CMYK"), "JPEG"),
    "16 bits": lambda size: encoded(picture(*size, "I;16"), "PNG"),
    "alpha": lambda size: encoded(picture(*size, "RGBA"), "PNG"),
    "grey and alpha": lambda size: encoded(picture(*size, "LA"), "PNG"),
    "palette": lambda size: encoded(picture(*size, "P"), "GIF"),
    "webp": lambda size: encoded(picture(*size, "RGBA"), "WEBP"),
    "one bit": lambda size: encoded(picture(*size, "1"), "TIFF"),
}


@pytest.fixture(scope="module")
def processing(tmp_path_factory: pytest.TempPathFactory) -> MediaProcessing:
    folder = tmp_path_factory.mktemp("processing")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (folder / name).write_text(json.dumps(SETTINGS))
    return MediaProcessing.from_folder(folder)


@pytest.fixture(params=["cpu", "gpu"])
def loader(request: pytest.FixtureRequest, processing: MediaProcessing) -> PatchLoader:
    if request.param == "cpu":
        return CpuPatchLoader(processing, LIMITS, CPU, torch.float32)
    return GpuPatchLoader(processing, LIMITS, EncoderSection(), CPU, torch.float32, PillowJpegDecoder())


def patches_of(loader: PatchLoader, item: MediaItem) -> Tensor:
    packed = loader.pack([loader.prepare(item)])
    assert packed.errors == (None,)
    return packed.patches


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("size", [FINAL_SIZE, RESIZED], ids=["final", "resized"])
def test_picture_files(kind: str, size: tuple[int, int], loader: PatchLoader, processing: MediaProcessing) -> None:
    data = FILES[kind](size)
    reference = Qwen2VLImageProcessorPil(**SETTINGS)(load_image(Image.open(io.BytesIO(data))), return_tensors="pt")
    item = picture_item(data, processing)
    assert [item.grid.t, item.grid.h, item.grid.w] == reference["image_grid_thw"][0].tolist()
    difference = (patches_of(loader, item) - reference["pixel_values"]).abs()
    if size == FINAL_SIZE:
        assert difference.max() < 1e-5
    else:
        # Pillow may resize rows before columns, and rounds in between.
        assert difference.mean() < 0.02 * ONE_LEVEL
        assert difference.max() < 2.01 * ONE_LEVEL


@pytest.mark.parametrize(("num_frames", "rate"), [(2, 25), (7, 5), (15, 5), (56, 25), (60, 30)])
def test_video_files(num_frames: int, rate: int, loader: PatchLoader, processing: MediaProcessing) -> None:
    """The processor of transformers needs torchvision."""
    pytest.importorskip("torchvision")
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    data = video(num_frames, 90, 64, rate)
    frames = torch.cat(list(decode_video(data, list(range(num_frames)), LIMITS, "video")))
    metadata = VideoMetadata(
        total_num_frames=num_frames, fps=float(rate), duration=num_frames / rate, height=64, width=90
    )
    reference = Qwen2VLVideoProcessor(**SETTINGS)(
        videos=[frames], video_metadata=[metadata], do_sample_frames=True, return_tensors="pt"
    )
    item = item_of(video_media(data), processing)
    assert [item.grid.t, item.grid.h, item.grid.w] == reference["video_grid_thw"][0].tolist()
    difference = (patches_of(loader, item) - reference["pixel_values_videos"]).abs()
    assert difference.max() < 2.01 * ONE_LEVEL and difference.mean() < 0.1 * ONE_LEVEL
