"""Frames to patches: the kernels against their reference, and the reference against the processing of CPU pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

pytest.importorskip("triton", reason="Triton is not installed")

from triptych.kernels.patchify import resize_and_patchify
from triptych.kernels.patchify_reference import PatchJob, color_table, resize_and_patchify_reference
from triptych.models.qwen2_5_vl.processing.patches import PatchFormat
from triptych.models.qwen2_5_vl.processing.settings import CLIP_MEAN, CLIP_STD
from triptych.models.qwen2_5_vl.processing.taps import resize_taps

FORMAT = PatchFormat(
    min_pixels=1, max_pixels=1 << 24, patch_size=14, temporal_patch_size=2, merge_size=2, mean=CLIP_MEAN, std=CLIP_STD
)


def job_for(size: tuple[int, int], resized: tuple[int, int], device: torch.device, orientation: int = 1) -> PatchJob:
    """`size` and `resized` are (height, width) of the upright picture."""
    rows, columns = (resize_taps(*lengths).to(device) for lengths in zip(size, resized, strict=True))
    return PatchJob(FORMAT, columns, rows, color_table(FORMAT, device), orientation)


def both(frames: torch.Tensor, job: PatchJob, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (job.num_patches(frames.shape[0]), FORMAT.patch_dim)
    actual, expected = (torch.full(shape, torch.nan, dtype=dtype, device=frames.device) for _ in range(2))
    resize_and_patchify(frames, job, actual)
    resize_and_patchify_reference(frames, job, expected)
    return actual, expected


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((56, 84), (56, 84)),
        ((50, 90), (56, 84)),
        ((50, 84), (56, 84)),
        ((56, 90), (56, 84)),
        ((1, 3), (28, 56)),
        ((31, 60), (28, 28)),
    ],
)
@pytest.mark.parametrize("num_frames", [1, 3])
def test_patches_equal_the_reference(
    size: tuple[int, int], resized: tuple[int, int], num_frames: int, device: torch.device
) -> None:
    frames = torch.randint(0, 256, (num_frames, 3, *size), dtype=torch.uint8, device=device)
    actual, expected = both(frames, job_for(size, resized, device), torch.float32)
    assert torch.equal(actual, expected)
    cpu = FORMAT.patches_of_size(frames.cpu(), *resized)
    assert torch.equal(expected.cpu(), cpu) or float((expected.cpu() - cpu).abs().max()) < 1e-6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("is_resized", [False, True])
def test_orientation_is_walked(orientation: int, is_resized: bool, device: torch.device) -> None:
    stored = torch.randint(0, 256, (1, 3, 56, 84), dtype=torch.uint8, device=device)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(stored[0].permute(1, 2, 0).cpu().numpy()).save(file, "PNG", exif=exif.tobytes())
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    upright = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous()
    size = (upright.shape[2], upright.shape[3])
    resized = (28, 112) if is_resized else size
    actual, expected = both(stored, job_for(size, resized, device, orientation), torch.float32)
    assert torch.equal(actual, expected)
    assert torch.allclose(actual.cpu(), FORMAT.patches_of_size(upright, *resized), rtol=0, atol=1e-6)


def test_bfloat16_is_the_rounded_float32(device: torch.device) -> None:
    frames = torch.randint(0, 256, (1, 3, 60, 60), dtype=torch.uint8, device=device)
    job = job_for((60, 60), (56, 56), device)
    actual, expected = both(frames, job, torch.bfloat16)
    # The interpreter cuts a float32 off where a GPU rounds it.
    torch.testing.assert_close(actual, expected, rtol=1 / 128, atol=0)


def test_only_the_given_rows_are_written(device: torch.device) -> None:
    frames = torch.randint(0, 256, (1, 3, 40, 70), dtype=torch.uint8, device=device)
    job = job_for((40, 70), (28, 56), device)
    packed = torch.full((3 * 8, FORMAT.patch_dim), torch.nan, device=device)
    resize_and_patchify(frames, job, packed[8:16])
    assert bool(packed[8:16].isfinite().all()) and bool(packed[:8].isnan().all()) and bool(packed[16:].isnan().all())
