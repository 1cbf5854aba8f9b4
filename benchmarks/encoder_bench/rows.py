"""Rows of the parts: JPEG files to patches, and the tower alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch

from benchmarks.encoder_bench.bench import EncoderBench, Measure, Measured, median
from benchmarks.encoder_bench.media import jpegs_to_patches
from benchmarks.encoder_bench.tower import random_patches, tower_flops
from encoder_service.items import MediaItem
from encoder_service.media.loader import PatchLoader
from encoder_service.media.prepared import EncodedJpeg, PreparedMedia

# Rows, outputs and inputs of the matrix product that sets the peak, and a small one for a try on a CPU.
PEAK_SHAPE, QUICK_PEAK_SHAPE = (21_528, 11_008, 2_048), (512, 1_024, 512)


def time_decoding(bench: EncoderBench, loader: PatchLoader, prepared: Sequence[PreparedMedia]) -> float:
    """Milliseconds of the device's decoder for those pictures; 0 where the CPU decodes."""
    decoder = getattr(loader, "_decoder", None)
    jpegs = [item.content for item in prepared if isinstance(item.content, EncodedJpeg)]
    return bench.timed_ms(lambda: decoder.decode(jpegs)) if decoder is not None and jpegs else 0.0


def tower(bench: EncoderBench, *, name: str, count: int) -> Measured:
    """Milliseconds of one packed forward pass of `count` pictures of a size."""
    grids = [bench.grid(name)] * count
    patches = random_patches(grids, bench.config.vision, bench.device, bench.dtype)
    for _ in range(2):
        bench.timed_ms(lambda: bench.engine.encode(patches, grids))
    samples = [bench.timed_ms(lambda: bench.engine.encode(patches, grids)) for _ in range(bench.repeats)]
    flops = tower_flops(bench.config.vision, grids)
    bench.notes[f"tower_flops_per_s_{count}x{name}"] = rate = flops / median(samples) * 1e3
    details: dict[str, object] = {"num_patches": len(patches), "tflop": flops / 1e12, "tflops_per_s": rate / 1e12}
    return Measured(samples, details | {"engine": type(bench.engine).__name__})


def tower_mfu(bench: EncoderBench) -> Measured:
    """Percent: the rate of the row before, 8 x 1080p, over that of one large matrix product measured now."""
    rows, outputs, inputs = QUICK_PEAK_SHAPE if bench.is_quick else PEAK_SHAPE
    states, weight = (torch.randn(size, inputs, device=bench.device, dtype=bench.dtype) for size in (rows, outputs))
    product = partial(torch.nn.functional.linear, states, weight)
    for _ in range(10):
        product()
    times = [bench.timed_ms(lambda: [product() for _ in range(10)]) / 10 for _ in range(max(bench.repeats, 5))]
    peak = 2.0 * rows * outputs * inputs / median(times) * 1e3
    rate = bench.notes["tower_flops_per_s_8x1080p"]
    return Measured([100 * rate / peak], {"gemm_tflops_per_s": peak / 1e12, "tower_tflops_per_s": rate / 1e12})


def prepared_items(loader: PatchLoader, items: Sequence[MediaItem]) -> list[PreparedMedia]:
    return [loader.prepare(item) for item in items]


ROWS: Mapping[str, Measure] = MappingProxyType(
    {
        "tower_1x720p": partial(tower, name="720p", count=1),
        "tower_8x1080p": partial(tower, name="1080p", count=8),
        "tower_mfu_8x1080p": tower_mfu,
        "jpeg_to_patches_8x1080p": jpegs_to_patches,
    }
)
