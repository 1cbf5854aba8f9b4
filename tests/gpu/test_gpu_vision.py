"""The fused tower at true shapes on a GPU: against float32, by batch, in graphs, in memory, and without a host sync."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from gpu_helpers import free_unreachable, relative_error

from benchmarks.model_folders import write_model_folder
from encoder_service.engines.fused import FusedVisionEngine
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision import VisionTower
from triptych.models.qwen2_5_vl.weights import random_vision_tower

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

CUDA = torch.device("cuda")
# Ragged windows, single cells, a video, a long strip, pictures over and under the size of a graph.
MIXED = [Grid(1, 2, 2), Grid(1, 30, 46), Grid(3, 10, 14), Grid(1, 2, 300), Grid(1, 52, 92), Grid(1, 8, 8)]
SMALL = [[Grid(1, 2, 2)], [Grid(1, 16, 16)], [Grid(1, 10, 14), Grid(2, 8, 6)], [Grid(1, 20, 38), Grid(1, 14, 16)]]


@dataclass
class Setup:
    """The same random weights: float32, plain bfloat16, fused."""

    reference: VisionTower
    plain: VisionTower
    engine: FusedVisionEngine


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """A quarter of the depth, so that errors do not grow until they say nothing: three layers of windows, then one of
    frames, twice."""
    config = ModelConfig.from_folder(write_model_folder("3b", Path(tmp_path_factory.mktemp("3b"))))
    config = replace(config, vision=replace(config.vision, depth=8, fullatt_block_indexes=(3, 7)))
    plain = random_vision_tower(config, torch.bfloat16, CUDA, seed=3)
    reference = copy.deepcopy(plain).float()
    yield Setup(reference, plain, FusedVisionEngine(copy.deepcopy(plain), max_graph_patches=1024))
    free_unreachable()


def patches_of(grids: Sequence[Grid], seed: int = 0) -> Tensor:
    generator = torch.Generator(CUDA).manual_seed(seed)
    num_patches = sum(grid.num_patches for grid in grids)
    return torch.randn(num_patches, 1176, generator=generator, device=CUDA).to(torch.bfloat16)


@pytest.mark.parametrize("grids", [MIXED, *SMALL], ids=["mixed", *(f"graph{index}" for index in range(len(SMALL)))])
def test_is_as_near_to_float32_as_the_plain_tower(setup: Setup, grids: list[Grid]) -> None:
    patches = patches_of(grids)
    with torch.inference_mode():
        expected = setup.reference(patches.float(), grids)
        plain_error = relative_error(setup.plain(patches, grids), expected)
    actual = torch.cat(setup.engine.encode(patches, grids))
    assert bool(actual.isfinite().all())
    error = relative_error(actual, expected)
    print(f"error {error:.5f}, of the plain tower {plain_error:.5f}")
    assert error < 1.2 * plain_error and error < 0.05


def test_a_picture_does_not_depend_on_its_batch(setup: Setup) -> None:
    """Beyond the rounding that other shapes of matrix products bring."""
    patches = patches_of(MIXED)
    packed = setup.engine.encode(patches, MIXED)
    parts = torch.split(patches, [grid.num_patches for grid in MIXED])
    for grid, part, embedding in zip(MIXED, parts, packed, strict=True):
        (alone,) = setup.engine.encode(part, [grid])
        assert relative_error(embedding, alone) < 0.02


def test_a_graph_gives_what_launches_give_and_keeps_nothing(setup: Setup) -> None:
    """The rows that fill a bucket up are zeros: what a batch before left there does not matter."""
    setup.engine.encode(torch.full_like(patches_of([Grid(1, 32, 32)]), torch.nan), [Grid(1, 32, 32)])
    for seed, grids in enumerate(SMALL):
        patches = patches_of(grids, seed)
        with torch.inference_mode():
            captured = setup.engine._graphs.forward(patches, grids)
            assert captured is not None and bool(captured.isfinite().all())
            launched = setup.engine.tower.forward(patches, grids)
        assert relative_error(captured, launched) < 0.02


def test_nothing_waits_for_the_device(setup: Setup) -> None:
    """Also with pictures of shapes that were never seen."""
    batches = [[Grid(1, 30, 34), Grid(2, 42, 18)], [Grid(1, 6, 22)]]
    every = [patches_of(grids) for grids in batches]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for patches, grids in zip(every, batches, strict=True):
            setup.engine.encode(patches, grids)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_as_estimated(setup: Setup) -> None:
    grids = [Grid(1, 78, 138)] * 3
    patches = patches_of(grids)
    setup.engine.encode(patches, grids)
    free_unreachable()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    embeddings = setup.engine.encode(patches, grids)
    peak = torch.cuda.max_memory_allocated() - before + patches.nbytes
    estimate = setup.engine.activation_bytes(len(patches))
    print(f"peak {peak / 1e6:.0f} MB, estimated {estimate / 1e6:.0f} MB")
    assert 0.85 * estimate < peak <= estimate
    assert all(embedding.untyped_storage().nbytes() == embedding.nbytes for embedding in embeddings)
