"""The vision tower alone, from packed patches on the device to embeddings: times, and its share of the GEMM peak.

`python -m benchmarks.encoder_bench.tower --out FOLDER` runs all of it on one GPU with random weights at true shapes and
writes FOLDER/tower.json; the parts of a layer and the choices of attention are in `tower_parts`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoder_bench import tower_parts
from benchmarks.kernel_bench.timing import median, time_eager, warm_up_gpu
from benchmarks.model_folders import write_model_folder
from encoder_service.engines import VisionEngine
from encoder_service.engines.fused import FusedVisionEngine
from triptych.config import EncoderSection
from triptych.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.weights import random_vision_tower

# What the processor makes of 1280 x 720 and 1920 x 1080 pixels.
GRID_720P, GRID_1080P = Grid(1, 52, 92), Grid(1, 78, 138)
BATCHES = {
    "16 patches": [Grid(1, 4, 4)],
    "256 patches": [Grid(1, 16, 16)],
    "1024 patches": [Grid(1, 32, 32)],
    "2048 patches": [Grid(1, 32, 64)],
    "1 x 720p": [GRID_720P],
    "8 x 720p": [GRID_720P] * 8,
    "8 x 1080p": [GRID_1080P] * 8,
    "mixed": [Grid(1, 30, 40), GRID_720P, Grid(1, 64, 48), GRID_1080P, Grid(4, 36, 64), Grid(1, 8, 10)],
}
# Rows, outputs and inputs of the matrix product that sets the peak: 739 TFLOP/s on an H200.
PEAK_SHAPE = (21_528, 11_008, 2_048)


def tower_flops(config: VisionConfig, grids: Sequence[Grid]) -> float:
    """Operations of a pass: matrix products and attention, two for each product that is summed up."""
    hidden, merge = config.hidden_size, config.spatial_merge_size
    num_patches = sum(grid.num_patches for grid in grids)
    num_full = len(config.fullatt_block_indexes)
    window = (config.window_size // config.patch_size) ** 2
    linears = 4 * hidden * hidden + 3 * hidden * config.intermediate_size
    merged = hidden * merge**2
    per_patch = 2.0 * (config.patch_dim * hidden + config.depth * linears)
    per_patch += 2.0 * (merged * merged + merged * config.out_hidden_size) / merge**2
    windows = 4.0 * hidden * window * (config.depth - num_full)
    frames = sum(4.0 * hidden * grid.t * (grid.h * grid.w) ** 2 for grid in grids) * num_full
    return num_patches * (per_patch + windows) + frames


def time_tower(engine: VisionEngine, patches: Tensor, grids: Sequence[Grid], *, rounds: int = 10) -> list[float]:
    """Milliseconds of `encode`, between events."""
    return [sample / 1e3 for sample in time_eager(lambda: engine.encode(patches, grids), rounds=rounds)]


def time_host(engine: VisionEngine, patches: Tensor, grids: Sequence[Grid]) -> float:
    """Milliseconds for which `encode` holds its thread: it only launches."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    engine.encode(patches, grids)
    elapsed_s = time.perf_counter() - started
    torch.cuda.synchronize()
    return elapsed_s * 1e3


def measure_peak() -> float:
    """FLOP/s of one large matrix product in bfloat16 on random data."""
    rows, outputs, inputs = PEAK_SHAPE
    states, weight = (torch.randn(size, inputs, device="cuda", dtype=torch.bfloat16) for size in (rows, outputs))
    samples = time_eager(lambda: torch.nn.functional.linear(states, weight), rounds=20)
    return 2.0 * rows * outputs * inputs / (median(samples) * 1e-6)


def random_patches(grids: Sequence[Grid], config: VisionConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(sum(grid.num_patches for grid in grids), config.patch_dim, device=device, dtype=dtype)


def run(config: ModelConfig, save: Callable[[dict[str, Any]], None]) -> None:
    """Measures all batches, then the parts; `save` gets what there is after each."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "batches": {}}
    warm_up_gpu()
    report["gemm_peak_tflops"] = measure_peak() / 1e12
    started = time.perf_counter()
    engine = FusedVisionEngine(random_vision_tower(config, dtype, device, seed=0), EncoderSection().max_graph_patches)
    torch.cuda.synchronize()
    report["engine_s"] = time.perf_counter() - started
    for name, grids in BATCHES.items():
        patches = random_patches(grids, config.vision, device, dtype)
        samples = time_tower(engine, patches, grids)
        tflops = tower_flops(config.vision, grids) / median(samples) / 1e9
        report["batches"][name] = {
            "ms": samples,
            "median_ms": median(samples),
            "host_ms": time_host(engine, patches, grids),
            "tflops": tflops,
            "mfu": tflops / report["gemm_peak_tflops"],
        }
        print(name, {key: value for key, value in report["batches"][name].items() if key != "ms"}, flush=True)
        save(report)
    for name, measure in tower_parts.PARTS.items():
        try:
            report[name] = measure(engine.tower)
        except Exception as error:
            report[name] = {"error": repr(error)}
        print(name, json.dumps(report[name], indent=1), flush=True)
        save(report)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tower.json")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = ModelConfig.from_folder(write_model_folder("3b", arguments.out / "model"))
    with torch.inference_mode():
        run(config, lambda report: _save(report, arguments.out / "tower.json"))
    return 0


def _save(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())
