"""The fused tower over plain-torch operations against the plain tower: weights, layouts and filled-up batches."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_vision import GRIDS, random_patches
from torch import Tensor

from triptych.errors import ModelError
from triptych.kernels.vision_reference import interleaved_pairs
from triptych.kernels.vision_tiles import TILE_ROWS, frame_tiles
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision import VisionTower
from triptych.models.qwen2_5_vl.vision.fused import FusedVisionTower, activation_bytes
from triptych.models.qwen2_5_vl.vision.fused_layout import FusedLayout
from triptych.models.qwen2_5_vl.vision.graphs import MAX_FRAMES, bucket_sizes, padded_tables, table_sizes
from triptych.models.qwen2_5_vl.vision.operations import TorchVisionOperations
from triptych.models.qwen2_5_vl.weights import random_vision_tower

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["as published", "of head size 80"])
def tower(request: pytest.FixtureRequest, checkpoint: Path) -> VisionTower:
    """Random biases and norms, and an MLP whose width must be filled up."""
    config = ModelConfig.from_folder(checkpoint)
    if request.param == "of head size 80":
        vision = replace(config.vision, hidden_size=160, num_heads=2, intermediate_size=100, window_size=112)
        config = replace(config, vision=vision)
    tower = random_vision_tower(config, torch.float32, CPU, seed=1)
    for parameter in tower.parameters():
        if parameter.ndim == 1:
            parameter.uniform_(0.5, 1.5)
    return tower


@pytest.fixture(scope="module")
def fused(tower: VisionTower) -> FusedVisionTower:
    return FusedVisionTower(copy.deepcopy(tower), TorchVisionOperations())


def close(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().mean() > 0.05
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_equals_the_plain_tower(tower: VisionTower, fused: FusedVisionTower) -> None:
    patches = random_patches(GRIDS)
    close(fused.forward(patches, GRIDS), tower(patches, GRIDS))


def test_a_picture_does_not_depend_on_its_batch(fused: FusedVisionTower) -> None:
    patches = random_patches(GRIDS)
    packed = torch.split(fused.forward(patches, GRIDS), [grid.num_tokens(2) for grid in GRIDS])
    for grid, part, embedding in zip(
        GRIDS, torch.split(patches, [grid.num_patches for grid in GRIDS]), packed, strict=True
    ):
        close(embedding, fused.forward(part, [grid]))


def test_unfit_patches_are_refused(fused: FusedVisionTower) -> None:
    with pytest.raises(ModelError):
        fused.forward(torch.zeros(8, 1176), [Grid(1, 2, 2)])


def test_a_tower_that_was_taken_apart_is_empty(tower: VisionTower) -> None:
    """Converted weights are not held twice; the others are shared."""
    taken = copy.deepcopy(tower)
    num_bytes = sum(tensor.nbytes for tensor in FusedVisionTower(taken, TorchVisionOperations()).weights.tensors)
    own = {parameter.data_ptr(): parameter.nbytes for parameter in taken.parameters() if parameter.nbytes}
    assert sum(own.values()) < num_bytes
    assert {name.split(".")[-2] for name, values in taken.named_parameters() if not values.nbytes} == {
        "qkv", "gate_up_proj", "down_proj",
    }  # fmt: skip


@pytest.mark.parametrize("grids", [GRIDS[:4], [Grid(1, 2, 2)], [Grid(1, 16, 16)]])
def test_a_batch_filled_up_to_a_bucket(fused: FusedVisionTower, grids: list[Grid]) -> None:
    num_patches, num_rows = 256, sum(grid.num_patches for grid in grids)
    tables = padded_tables(fused.layouts.orders.packed(grids), num_patches, fused.config)
    assert tables is not None
    sizes = table_sizes(num_patches, fused.config)
    parts = torch.split(torch.from_numpy(tables), [int(np.prod(size)) for size in sizes])
    window_order, original_order, positions, windows, frames, tiles = (
        part.view(size) for part, size in zip(parts, sizes, strict=True)
    )
    cos, sin = fused.layouts.rotary.cos_sin(positions)
    lengths = [tuple(length for length in table.diff().tolist() if length) for table in (windows, frames)]
    layout = FusedLayout(
        window_order, original_order, cos, sin, windows, frames, tiles, fused.layouts.max_window, *lengths
    )
    assert all(sum(of_kind) == num_patches for of_kind in lengths)
    assert max(lengths[0]) <= fused.layouts.max_window
    is_covered = np.zeros(num_patches, dtype=int)
    for start, first_row, end in tiles.tolist():
        is_covered[first_row : min(end, first_row + TILE_ROWS)] += end > start
    assert (is_covered == 1).all()
    patches = random_patches(grids)
    padded = torch.cat((patches, torch.zeros(num_patches - num_rows, 1176)))
    embeddings = fused.compute(padded, layout)
    assert bool(embeddings.isfinite().all())
    close(embeddings[: num_rows // 4], fused.forward(patches, grids))


def test_a_batch_of_too_many_pieces_has_no_graph(fused: FusedVisionTower) -> None:
    orders = fused.layouts.orders
    assert padded_tables(orders.packed([Grid(1, 2, 2)] * MAX_FRAMES), 2048, fused.config) is None
    has_few_windows = fused.layouts.max_window == 64
    assert (padded_tables(orders.packed([Grid(1, 2, 2)] * 30), 256, fused.config) is None) == has_few_windows
    assert padded_tables(orders.packed([Grid(1, 8, 4)] * (MAX_FRAMES - 1)), 2048, fused.config) is not None


def test_buckets_end_at_the_configured_size() -> None:
    assert bucket_sizes(0) == [] and bucket_sizes(128) == [128]
    assert bucket_sizes(1000) == [128, 256, 512, 768]


@given(st.lists(st.integers(1, 100).map(lambda cells: 4 * cells), min_size=1, max_size=20))
def test_tiles_cover_every_row_once(lengths: list[int]) -> None:
    ends = np.cumsum(lengths)
    frame_of_row = np.repeat(np.arange(len(lengths)), lengths)
    num_covered = np.zeros(ends[-1], dtype=int)
    tiles = frame_tiles(np.array(lengths))
    for start, first_row, end in tiles:
        rows = slice(first_row, min(end, first_row + TILE_ROWS))
        num_covered[rows] += 1
        assert set(frame_of_row[rows]) == {frame_of_row[start]} and end == ends[frame_of_row[start]]
    assert (num_covered == 1).all()
    assert (np.diff(tiles[:, 2] - tiles[:, 0]) <= 0).all()


def test_interleaved_pairs_turn_together() -> None:
    assert interleaved_pairs(8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_activations_grow_with_the_patches(fused: FusedVisionTower) -> None:
    small, large = (activation_bytes(fused.config, num_patches, torch.bfloat16) for num_patches in (4, 400))
    assert large == 100 * small
