"""Resizing by tables of integers is torch's resizing of uint8, bit for bit."""

import random

import pytest
import torch
from torch.nn import functional as F

from triptych.kernels.patchify_reference import PatchJob, color_table, resize_and_patchify_reference
from triptych.models.qwen2_5_vl.processing.patches import PatchFormat
from triptych.models.qwen2_5_vl.processing.settings import CLIP_MEAN, CLIP_STD
from triptych.models.qwen2_5_vl.processing.taps import resize_taps

FORMAT = PatchFormat(
    min_pixels=1, max_pixels=1 << 24, patch_size=14, temporal_patch_size=2, merge_size=2, mean=CLIP_MEAN, std=CLIP_STD
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(20))
def test_patches_equal_the_processing_on_a_cpu(seed: int) -> None:
    generator = random.Random(seed)
    height, width = generator.randint(1, 300), generator.randint(1, 300)
    resized = (generator.randint(1, 9) * 28, generator.randint(1, 9) * 28)
    frames = torch.randint(0, 256, (1 + seed % 3, 3, height, width), dtype=torch.uint8)
    if seed % 2:
        frames = (frames > 127).to(torch.uint8) * 255  # hard edges overshoot
    job = PatchJob(FORMAT, resize_taps(width, resized[1]), resize_taps(height, resized[0]), color_table(FORMAT, CPU))
    out = torch.full((job.num_patches(frames.shape[0]), FORMAT.patch_dim), torch.nan)
    resize_and_patchify_reference(frames, job, out)
    assert torch.equal(out, FORMAT.patches_of_size(frames, *resized))


@pytest.mark.parametrize(("in_size", "out_size"), [(1, 28), (28, 28), (9_000, 28), (3_840, 2_604), (5, 2_800)])
def test_weights_add_up_and_sums_fit_into_32_bits(in_size: int, out_size: int) -> None:
    taps = resize_taps(in_size, out_size)
    one = 1 << taps.precision
    assert int((taps.weights.sum(0) - one).abs().max()) <= taps.num_taps
    assert int(taps.weights.abs().sum(0).max()) * 255 + one < 1 << 31
    assert int(taps.starts.min()) >= 0 and int(taps.starts.max()) < in_size
    assert taps.precision == 0 or int(taps.weights.max()) < 1 << 15


def test_a_very_flat_picture() -> None:
    frames = torch.randint(0, 256, (1, 3, 2, 380), dtype=torch.uint8)
    taps = resize_taps(380, 112)
    wide = F.interpolate(frames, size=(2, 112), mode="bicubic", antialias=True)
    positions = (taps.starts[:, None] + torch.arange(taps.num_taps)).clamp(max=379).long()
    total = (frames[..., positions].int() * taps.weights.T).sum(-1) + (1 << taps.precision >> 1)
    assert torch.equal((total >> taps.precision).clamp(0, 255).to(torch.uint8), wide)
