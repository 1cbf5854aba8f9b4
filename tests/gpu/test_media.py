"""JPEG bytes to patches on a GPU: nvJPEG's pixels, the kernels compiled, streams, memory, and the answers."""

from __future__ import annotations

import gc
import random

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from media_loaders import LIMITS, broken, item_of, picture_item, processing, random_picture
from media_samples import encoded, oriented, picture
from PIL import Image
from tiny_answers import TinyModel, asked_pictures

from encoder_service.media import LoaderSource, PackedPatches, make_patch_loader
from encoder_service.media.cpu import CpuPatchLoader
from encoder_service.media.gpu import GpuPatchLoader
from encoder_service.media.prepared import DecodedFrames, EncodedJpeg
from triptych.config import EncoderSection
from triptych.errors import TriptychError
from triptych.kernels.patchify import resize_and_patchify
from triptych.kernels.patchify_reference import PatchJob, color_table, resize_and_patchify_reference
from triptych.media.layout import MediaProcessing
from triptych.models.qwen2_5_vl.processing.taps import resize_taps
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.v1 import common_pb2

pytestmark = pytest.mark.gpu
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LARGE = processing(max_pixels=28 * 28 * 4096)
MIB = 1024 * 1024


def loader_of(of: MediaProcessing = LARGE, dtype: torch.dtype = torch.float32, **section: int) -> GpuPatchLoader:
    source = LoaderSource(of, CUDA, dtype, EncoderSection.model_validate(section), LIMITS)
    loader = make_patch_loader(source)
    assert isinstance(loader, GpuPatchLoader)
    return loader


def pack(loader: GpuPatchLoader, *files: bytes, of: MediaProcessing = LARGE) -> PackedPatches:
    return loader.pack([loader.prepare(picture_item(data, of)) for data in files])


def cpu_patches(data: bytes, of: MediaProcessing = LARGE) -> torch.Tensor:
    loader = CpuPatchLoader(of, LIMITS, CPU, torch.float32)
    return loader.pack([loader.prepare(picture_item(data, of))]).patches


def soft(width: int, height: int, seed: int = 0) -> Image.Image:
    """As in a photograph, colours change over many pixels."""
    return picture(max(2, width // 40), max(2, height // 40), seed=seed).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def levels(patches: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Differences in levels of 0 to 255, within a tenth."""
    return (patches.cpu().float() - expected).abs() * 255 * 0.27


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(12))
def test_kernels_equal_the_reference_bit_for_bit(seed: int, dtype: torch.dtype) -> None:
    generator = random.Random(seed)
    of = LARGE.image
    stored = (generator.randint(1, 700), generator.randint(1, 700))
    upright = stored[::-1] if seed % 8 >= 4 else stored
    resized = (generator.randint(1, 20) * 28, generator.randint(1, 20) * 28)
    if seed == 3:
        stored = upright = resized
    frames = torch.randint(0, 256, (1 + seed % 3, 3, *stored), dtype=torch.uint8, device=CUDA)
    columns, rows = resize_taps(upright[1], resized[1]).to(CUDA), resize_taps(upright[0], resized[0]).to(CUDA)
    job = PatchJob(of, columns, rows, color_table(of, CUDA), 1 + seed % 8)
    shape = (job.num_patches(frames.shape[0]), of.patch_dim)
    actual, expected = (torch.full(shape, torch.nan, dtype=dtype, device=device) for device in (CUDA, CPU))
    resize_and_patchify(frames, job, actual)
    resize_and_patchify_reference(frames.cpu(), _on_cpu(job), expected)
    assert torch.equal(actual.cpu(), expected)


def _on_cpu(job: PatchJob) -> PatchJob:
    taps = (resize_taps(job.columns.in_size, job.columns.out_size), resize_taps(job.rows.in_size, job.rows.out_size))
    return PatchJob(job.format, *taps, job.colors.cpu(), job.orientation)


def test_pictures_that_the_cpu_decodes_are_equal() -> None:
    loader = loader_of()
    files = [encoded(picture(500, 300, seed=seed)) for seed in range(3)] + [encoded(picture(90, 70, "RGBA"), "WEBP")]
    packed = pack(loader, *files)
    assert torch.equal(packed.on_current_stream().cpu(), torch.cat([cpu_patches(data) for data in files]))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs_are_near_those_of_pillow(subsampling: int) -> None:
    data = encoded(soft(1280, 720), "JPEG", quality=90, subsampling=subsampling)
    loader = loader_of()
    assert isinstance(loader.prepare(picture_item(data, LARGE)).content, EncodedJpeg)
    difference = levels(pack(loader, data).on_current_stream(), cpu_patches(data))
    print(f"subsampling {subsampling}: mean {difference.mean():.3f}, max {difference.max():.1f}")
    if subsampling == 0:
        assert float(difference.max()) < 0.1
    assert float(difference.mean()) < 1.2 and float(difference.max()) < 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int) -> None:
    data = oriented(soft(300, 200), orientation, "JPEG")
    difference = levels(pack(loader_of(), data).on_current_stream(), cpu_patches(data))
    assert float(difference.mean()) < 1.5


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (3, 200), (64, 64), (65, 97), (640, 64), (2500, 1900)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_sizes(size: tuple[int, int], mode: str) -> None:
    data = encoded(soft(*size).convert(mode), "JPEG", quality=95)
    packed = pack(loader_of(), data)
    assert packed.errors == (None,)
    difference = levels(packed.on_current_stream(), cpu_patches(data))
    print(f"mean {difference.mean():.3f}, max {difference.max():.1f}")
    # Small ones are decoded on the CPU; grey ones have no colours to widen.
    is_exact = min(size) < 64 or mode == "L"
    assert float(difference.max()) < 0.1 if is_exact else float(difference.mean()) < 2.0


def test_videos() -> None:
    loader = loader_of(media_bytes=4 * MIB)
    frames = [encoded(picture(320, 200, seed=seed)) for seed in range(7)]
    media = common_pb2.Media(kind=common_pb2.MEDIA_KIND_VIDEO, frames=common_pb2.VideoFrames(frames=frames))
    item = item_of(media, LARGE)
    prepared = loader.prepare(item)
    assert isinstance(prepared.content, DecodedFrames) and prepared.content.frames.is_pinned()
    on_cpu = CpuPatchLoader(LARGE, LIMITS, CPU, torch.float32)
    expected = on_cpu.pack([on_cpu.prepare(item)]).patches
    assert torch.equal(loader.pack([prepared]).on_current_stream().cpu(), expected)


def test_two_hundred_random_pictures_some_broken_in_one_pack() -> None:
    """Each gets its patches or its error, whatever stands beside it; and the decoder goes on afterwards."""
    of = processing()
    loader = loader_of(of)
    prepared, expected = [], []
    for seed in range(200):
        data = random_picture(seed, largest=500)
        data = broken(data, seed) if seed % 4 == 0 else data
        try:
            prepared.append(loader.prepare(picture_item(data, of)))
        except TriptychError:
            continue
        expected.append(None if seed % 4 == 0 else cpu_patches(data, of))
    packed = loader.pack(prepared)
    patches, row, differences = packed.on_current_stream().cpu(), 0, []
    assert bool(patches.isfinite().all())
    for media, error, alone in zip(prepared, packed.errors, expected, strict=True):
        if error is not None:
            assert alone is None, error
            continue
        own = patches[row : row + media.num_patches]
        row += media.num_patches
        if alone is not None:
            differences.append(float(levels(own, alone).mean()))
    print(f"{len(prepared)} packed, {sum(map(bool, packed.errors))} errors, largest mean difference {max(differences)}")
    assert row == patches.shape[0] and len(differences) > 120
    # Noise has its colours changed by each decoder's way to widen them: most of all where 4:2:0 halves them.
    assert sorted(differences)[len(differences) // 2] < 8.0 and max(differences) < 40.0
    good = encoded(soft(300, 200), "JPEG")
    assert float(levels(pack(loader, good, of=of).on_current_stream(), cpu_patches(good, of)).mean()) < 1.5


def test_memory_stays_within_the_budget() -> None:
    """48 pictures of 6 MB each, under 64 MiB."""
    loader = loader_of(dtype=torch.bfloat16, media_bytes=64 * MIB)
    files = [encoded(soft(1920, 1080, seed=seed), "JPEG") for seed in range(4)] * 10
    files += [encoded(soft(1920, 1080, seed=seed), "WEBP", quality=50) for seed in range(2)] * 4
    prepared = [loader.prepare(picture_item(data, LARGE)) for data in files]
    pack(loader, files[0])
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, free_before = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    packed = loader.pack(prepared)
    torch.cuda.synchronize()
    used = torch.cuda.max_memory_allocated() - before - packed.patches.nbytes
    taken = free_before - torch.cuda.mem_get_info()[0]
    print(f"{used / MIB:.0f} MiB beside {packed.patches.nbytes / MIB:.0f} MiB of patches, {taken / MIB:.0f} MiB in all")
    assert packed.errors == (None,) * len(files)
    assert used <= 64 * MIB + 4 * MIB


def test_patches_are_safe_while_later_batches_are_packed() -> None:
    """Read late on another stream: neither the next packs nor the decoder's stream may write over them."""
    loader, of = loader_of(dtype=torch.bfloat16), LARGE
    batches = [[encoded(soft(640, 480, seed=10 * n + seed), "JPEG") for seed in range(4)] for n in range(6)]
    expected = [pack(loader, *files, of=of).on_current_stream().clone() for files in batches]
    torch.cuda.synchronize()
    copies = []
    for _ in range(3):
        for files in batches:
            patches = pack(loader, *files, of=of).on_current_stream()
            torch.cuda._sleep(20_000_000)
            copies.append(patches.clone())
            del patches
    torch.cuda.synchronize()
    assert all(torch.equal(copy, expected[index % 6]) for index, copy in enumerate(copies))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_stay_the_same(dtype: torch.dtype) -> None:
    of = MediaProcessing.from_folder(BUILT_IN_FOLDER)
    asked = asked_pictures(24)
    loader = loader_of(of, dtype)
    prepared = [loader.prepare(picture_item(picture.data, of)) for picture in asked]
    assert all(isinstance(media.content, EncodedJpeg) for media in prepared)
    patches = loader.pack(prepared).on_current_stream().split([media.num_patches for media in prepared])
    differences = [levels(own, cpu_patches(picture.data, of)) for own, picture in zip(patches, asked, strict=True)]
    print(f"largest difference {max(float(difference.max()) for difference in differences):.1f} levels")
    questions, grids = [picture.question for picture in asked], [media.grid for media in prepared]
    answers = TinyModel(CUDA, dtype).answers(questions, patches, grids)
    assert answers == [picture.answer for picture in asked]
