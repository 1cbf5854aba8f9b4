"""The vision tower against transformers, and packing against single pictures."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision import Segments, VisionTower
from triptych.models.qwen2_5_vl.vision.order import OrderCache
from triptych.models.qwen2_5_vl.vision.rotary import INITIAL_POSITIONS
from triptych.models.qwen2_5_vl.weights import load_vision_tower

CPU = torch.device("cpu")
# One patch cell, one window, ragged windows on either side, a video, a repeated shape.
GRIDS = [Grid(1, 2, 2), Grid(1, 4, 4), Grid(1, 6, 10), Grid(3, 4, 6), Grid(1, 14, 2), Grid(1, 6, 10), Grid(2, 8, 8)]


@pytest.fixture(scope="module")
def tower(checkpoint: Path) -> VisionTower:
    return load_vision_tower(checkpoint, ModelConfig.from_folder(checkpoint), torch.float32, CPU)


def random_patches(grids: Sequence[Grid], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(grid.num_patches for grid in grids), 1176, generator=generator)


def expected_embeddings(
    reference: Qwen2_5_VLForConditionalGeneration, patches: Tensor, grids: Sequence[Grid]
) -> Tensor:
    with torch.no_grad():
        return reference.model.visual(
            patches, grid_thw=torch.tensor([[grid.t, grid.h, grid.w] for grid in grids])
        ).pooler_output


@pytest.mark.parametrize("grid", sorted(set(GRIDS)), ids=lambda grid: f"{grid.t}x{grid.h}x{grid.w}")
def test_single_equals_transformers(
    tower: VisionTower, reference: Qwen2_5_VLForConditionalGeneration, grid: Grid
) -> None:
    patches = random_patches([grid])
    embeddings = tower(patches, [grid])
    assert embeddings.shape == (grid.num_tokens(2), 48)
    torch.testing.assert_close(embeddings, expected_embeddings(reference, patches, [grid]), atol=1e-5, rtol=0)


def test_packed_equals_transformers_and_singles(
    tower: VisionTower, reference: Qwen2_5_VLForConditionalGeneration
) -> None:
    patches = random_patches(GRIDS)
    packed = tower(patches, GRIDS)
    assert packed.abs().mean() > 0.05
    torch.testing.assert_close(packed, expected_embeddings(reference, patches, GRIDS), atol=1e-5, rtol=0)
    singles = [
        tower(part, [grid])
        for part, grid in zip(patches.split([grid.num_patches for grid in GRIDS]), GRIDS, strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(singles), atol=1e-5, rtol=0)


def test_neighbours_do_not_matter(tower: VisionTower) -> None:
    mine, grid = random_patches([Grid(1, 6, 10)], seed=1), Grid(1, 6, 10)
    alone = tower(mine, [grid])
    for seed, neighbours in enumerate(([Grid(1, 6, 10)], [Grid(2, 8, 4), Grid(1, 2, 2)], [Grid(1, 4, 4)] * 5)):
        packed = tower(torch.cat([random_patches(neighbours, seed), mine]), [*neighbours, grid])
        torch.testing.assert_close(packed[-grid.num_tokens(2) :], alone, atol=1e-5, rtol=0)


def test_another_attention_takes_over(checkpoint: Path, tower: VisionTower) -> None:
    """The seam for kernels: called once a block, with windows and frames as cu_seqlens."""
    calls: list[list[int]] = []

    def attention(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        calls.append(segments.cu_seqlens.tolist())
        assert query.shape == key.shape == value.shape == (24, 2, 16)
        lengths = segments.cu_seqlens.diff().tolist()
        assert segments.max_length == max(lengths)
        parts = zip(*(states.split(lengths) for states in (query, key, value)), strict=True)
        outputs = [torch.softmax(torch.einsum("ihd,jhd->hij", q, k) / 4, -1) @ v.transpose(0, 1) for q, k, v in parts]
        return torch.cat([output.transpose(0, 1) for output in outputs])

    other = VisionTower(tower.config, attention)
    other.load_state_dict(tower.state_dict())
    patches = random_patches([Grid(1, 4, 6)])
    with torch.no_grad():
        torch.testing.assert_close(other(patches, [Grid(1, 4, 6)]), tower(patches, [Grid(1, 4, 6)]), atol=1e-5, rtol=0)
    assert calls == [[0, 16, 24], [0, 24], [0, 16, 24], [0, 24]]


def test_order_cache_is_bounded_in_patches(tower: VisionTower) -> None:
    cache = OrderCache(tower.config, max_patches=100)
    for height in range(2, 40, 2):
        cache.packed([Grid(1, height, 6)])
        assert cache._num_patches == sum(height * width for height, width in cache._frames)
        assert cache._num_patches <= 100 or len(cache._frames) == 1
    cache.packed([Grid(1, 2, 2), Grid(5, 4, 4)])
    assert set(cache._frames) == {(2, 2), (4, 4)}


def test_a_frame_that_is_longer_than_the_rotary_table(
    tower: VisionTower, reference: Qwen2_5_VLForConditionalGeneration
) -> None:
    grid = Grid(1, 2, INITIAL_POSITIONS + 2)
    patches = random_patches([grid])
    expected = expected_embeddings(reference, patches, [grid])
    torch.testing.assert_close(tower(patches, [grid]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rows", "grids"), [(8, [Grid(1, 2, 2)]), (0, []), (6, [Grid(1, 2, 3)]), (0, [Grid(0, 2, 2)])])
def test_patches_that_do_not_fit_are_refused(tower: VisionTower, rows: int, grids: list[Grid]) -> None:
    with pytest.raises(ModelError):
        tower(torch.zeros(rows, 1176), grids)
