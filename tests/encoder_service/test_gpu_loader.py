"""The loader for GPUs, run on the CPU with Pillow where nvJPEG would be: the patches are those of the CPU loader."""

from threading import Event

import pytest
import torch
from encoder_samples import frames_media, image_media, video_media
from media_loaders import LIMITS, PillowJpegDecoder, broken, item_of, picture_item, processing, random_picture
from media_samples import encoded, oriented, picture, video

from encoder_service.items import MediaItem
from encoder_service.media import LoaderSource, make_patch_loader
from encoder_service.media.cpu import CpuPatchLoader
from encoder_service.media.gpu import GpuPatchLoader
from encoder_service.media.jpeg_decoder import JpegDecoder
from encoder_service.media.loader import PackedPatches, PatchLoader
from encoder_service.media.prepared import DecodedFrames, EncodedJpeg
from triptych.config import EncoderSection, LimitsSection
from triptych.errors import Cancelled, ConfigurationError, InvalidRequest, TriptychError
from triptych.media.layout import MediaProcessing

CPU = torch.device("cpu")
OF = processing()


def gpu_loader(
    decoder: JpegDecoder | None = None, of: MediaProcessing = OF, limits: LimitsSection = LIMITS, **section: int
) -> GpuPatchLoader:
    section_ = EncoderSection.model_validate(section)
    return GpuPatchLoader(of, limits, section_, CPU, torch.float32, decoder or PillowJpegDecoder())


def cpu_patches(item: MediaItem, of: MediaProcessing = OF) -> torch.Tensor:
    loader = CpuPatchLoader(of, LIMITS, CPU, torch.float32)
    return loader.pack([loader.prepare(item)]).patches


def pack(loader: PatchLoader, *items: MediaItem) -> PackedPatches:
    return loader.pack([loader.prepare(item) for item in items])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_on_the_device(orientation: int) -> None:
    item = picture_item(oriented(picture(60, 100), orientation, "JPEG"), OF)
    loader = gpu_loader()
    assert isinstance(loader.prepare(item).content, EncodedJpeg)
    assert torch.equal(pack(loader, item).patches, cpu_patches(item))


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"keep_rgb": True}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {}),
        ("RGBA", "WEBP", {}),
        ("LA", "PNG", {}),
        ("P", "GIF", {}),
        ("I;16", "PNG", {}),
        ("CMYK", "TIFF", {}),
    ],
)
def test_what_the_device_does_not_take_is_decoded_on_the_cpu(mode: str, image_format: str, options: dict) -> None:
    item = picture_item(encoded(picture(60, 100, mode), image_format, **options), OF)
    decoder = PillowJpegDecoder()
    loader = gpu_loader(decoder)
    assert isinstance(loader.prepare(item).content, DecodedFrames)
    assert torch.equal(pack(loader, item).patches, cpu_patches(item))
    assert not decoder.batches


def test_videos_in_true_pairs_of_frames() -> None:
    moving = [encoded(picture(64, 48, seed=seed), "JPEG") for seed in range(5)]
    items = [
        item_of(video_media(video(10)), OF),
        item_of(frames_media(moving), OF),
        item_of(frames_media(moving[:1]), OF),
    ]
    packed = pack(gpu_loader(), *items)
    assert packed.errors == (None, None, None)
    assert torch.equal(packed.patches, torch.cat([cpu_patches(item) for item in items]))


def test_two_hundred_random_pictures_some_broken_in_one_pack() -> None:
    files = [random_picture(seed) for seed in range(200)]
    files = [broken(data, seed) if seed % 4 == 0 else data for seed, data in enumerate(files)]
    loader, one_by_one = gpu_loader(media_bytes=1 << 20), CpuPatchLoader(OF, LIMITS, CPU, torch.float32)
    prepared, expected = [], []
    for seed, data in enumerate(files):
        try:
            item = picture_item(data, OF, f"items[{seed}].media")
            media = loader.prepare(item)
        except InvalidRequest as error:
            assert seed % 4 == 0 and error.field.startswith(f"items[{seed}].media")
            continue
        prepared.append(media)
        try:
            expected.append(one_by_one.pack([one_by_one.prepare(item)]).patches)
        except InvalidRequest as error:
            expected.append(error)
    packed = loader.pack(prepared)
    good = [patches for patches in expected if isinstance(patches, torch.Tensor)]
    assert len(prepared) > 150 and 0 < len(good) < len(prepared)
    assert [str(error) for error in packed.errors] == [
        "None" if isinstance(patches, torch.Tensor) else str(patches) for patches in expected
    ]
    assert all(error is None or isinstance(error, TriptychError) for error in packed.errors)
    assert torch.equal(packed.patches, torch.cat(good))


def test_a_size_that_the_header_did_not_say() -> None:
    """Other sizes than the frame's reach no decoder, a thumbnail's or a second frame's neither."""
    data = encoded(picture(64, 64), "JPEG")
    position = data.index(b"\xff\xc0") + 5
    small = data[:position] + (8).to_bytes(2, "big") + (8).to_bytes(2, "big") + data[position + 4 :]
    item = picture_item(small, OF)
    assert item.grid.num_patches == 4
    packed = pack(gpu_loader(), item)
    assert packed.errors[0] is not None or packed.patches.shape[0] == 4
    two_frames = data[: position - 5] + small[position - 5 : position + 12] + data[position - 5 :]
    with pytest.raises(InvalidRequest):
        pack(gpu_loader(), MediaItem(item.content_key, item.grid, image_media(two_frames), "media"))


def test_the_budget_cuts_batches_and_videos() -> None:
    of = processing(max_pixels=28 * 28 * 1024)
    items = [picture_item(encoded(picture(400, 300, seed=seed), "JPEG"), of) for seed in range(6)]
    items.append(item_of(frames_media([encoded(picture(400, 300, seed=seed)) for seed in range(9)]), of))
    decoder = PillowJpegDecoder()
    packed = pack(gpu_loader(decoder, of, media_bytes=2_000_000), *items)
    # 400 x 300 pixels decoded and resized across are 0.8 MB.
    assert decoder.batches == [2, 2, 2]
    assert torch.equal(packed.patches, torch.cat([cpu_patches(item, of) for item in items]))


def test_pictures_that_shrink_much_wait_small() -> None:
    item = picture_item(encoded(picture(900, 700), "PNG"), OF)
    prepared = gpu_loader().prepare(item)
    assert isinstance(prepared.content, DecodedFrames)
    assert prepared.content.frames.shape[2:] == prepared.resized != (700, 900)
    assert torch.equal(pack(gpu_loader(), item).patches, cpu_patches(item))


def test_size_is_checked_before_anything_is_decoded() -> None:
    item = picture_item(encoded(picture(64, 64), "JPEG"), OF)
    decoder = PillowJpegDecoder()
    with pytest.raises(TriptychError, match=r"limits\.max_image_pixels"):
        gpu_loader(decoder, limits=LimitsSection(max_image_pixels=1_000)).prepare(item)
    assert not decoder.batches


def test_a_video_that_nobody_wants_is_given_up() -> None:
    given_up = Event()
    given_up.set()
    with pytest.raises(Cancelled):
        gpu_loader().prepare(item_of(video_media(video(10)), OF), given_up)


def test_nothing_but_errors() -> None:
    item = picture_item(encoded(picture(200, 200), "JPEG")[:-300] + b"\xff\xd9", OF)
    loader = gpu_loader()
    prepared = loader.prepare(item)
    packed = loader.pack([prepared])
    assert packed.patches.shape == (0 if packed.errors[0] else item.grid.num_patches, 1176)
    assert packed.on_current_stream() is packed.patches


def test_loaders_by_name() -> None:
    def source(name: str) -> LoaderSource:
        return LoaderSource(OF, CPU, torch.float32, EncoderSection(media=name), LIMITS)

    assert isinstance(make_patch_loader(source("auto")), CpuPatchLoader)
    assert isinstance(make_patch_loader(source("cpu")), CpuPatchLoader)
    with pytest.raises(ConfigurationError, match=r"stages\.encoder\.media is gpu, but the encoder runs on cpu"):
        make_patch_loader(source("gpu"))
    with pytest.raises(ConfigurationError, match="expected one of auto, cpu, gpu"):
        make_patch_loader(source("fast"))
