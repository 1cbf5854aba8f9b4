"""The vision tower's kernels against their references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from triptych.kernels.vision_full_attention import FullTiling, full_attention
from triptych.kernels.vision_operations import TritonVisionOperations
from triptych.kernels.vision_reference import rotate_query_and_key_reference, segment_attention_reference
from triptych.kernels.vision_rotary import rotate_query_and_key
from triptych.kernels.vision_tiles import TILE_ROWS
from triptych.kernels.vision_window_attention import WindowTiling, window_attention
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision import VisionTower
from triptych.models.qwen2_5_vl.vision.fused import FusedVisionTower

# One block; two; two of which the second is filled up.
HEAD_DIMS = [16, 80, 40]


def inputs(num_rows: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    angles = torch.rand(num_rows, head_dim // 2, device=device) * 6
    qkv = torch.randn(num_rows, 3 * num_heads * head_dim, device=device).to(dtype)
    return [qkv, angles.cos(), angles.sin()]


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if actual.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_in_place(head_dim: int, device: torch.device) -> None:
    qkv, cos, sin = inputs(5, 3, head_dim, torch.float32, device)
    expected = rotate_query_and_key_reference(qkv, cos, sin, head_dim)
    rotate_query_and_key(qkv, cos, sin, head_dim)
    close(qkv, expected)


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_window_attention(head_dim: int, is_half: bool, device: torch.device, half_dtype: torch.dtype) -> None:
    """Windows of all kinds: whole, cut off at an edge, one cell, empty; rows after the last are left alone."""
    lengths = [16, 4, 0, 12, 16]
    qkv, cos, sin = inputs(sum(lengths) + 4, 4, head_dim, half_dtype if is_half else torch.float32, device)
    starts = torch.tensor([0, 16, 20, 20, 32, 48], dtype=torch.int32, device=device)
    rotated = rotate_query_and_key_reference(qkv, cos, sin, head_dim)[:48]
    expected = segment_attention_reference(rotated, [length for length in lengths if length], head_dim)
    for tiling in (WindowTiling(), WindowTiling(1, 4, 1)):
        out = torch.full((52, 4 * head_dim), torch.nan, dtype=qkv.dtype, device=device)
        window_attention(qkv, cos, sin, starts, 16, head_dim, out=out, tiling=tiling)
        close(out[:48], expected)
        assert bool(out[48:].isnan().all())


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_full_attention(head_dim: int, is_half: bool, device: torch.device, half_dtype: torch.dtype) -> None:
    """Segments of less than a tile, of several, of whole steps and of a part; tiles in any order, one empty."""
    lengths = [TILE_ROWS + 36, 4, 64]
    qkv, _, _ = inputs(sum(lengths), 2, head_dim, half_dtype if is_half else torch.float32, device)
    rows = [[164, 164, 168], [0, TILE_ROWS, 164], [0, 0, 164], [0, 0, 0], [168, 168, 232]]
    tiles = torch.tensor(rows, dtype=torch.int32, device=device)
    expected = segment_attention_reference(qkv, lengths, head_dim)
    for tiling in (FullTiling(), FullTiling(32, 4, 2, is_peeled=False)):
        out = torch.full((sum(lengths), 2 * head_dim), torch.nan, dtype=qkv.dtype, device=device)
        full_attention(qkv, tiles, head_dim, out=out, tiling=tiling)
        close(out, expected)


def test_the_fused_tower_on_kernels_equals_the_plain_one(device: torch.device) -> None:
    """Two layers, one with windows and one over frames, packed pictures and a video."""
    vision = VisionConfig(
        depth=2, hidden_size=32, intermediate_size=44, num_heads=2, in_channels=3, patch_size=14,
        temporal_patch_size=2, spatial_merge_size=2, window_size=56, fullatt_block_indexes=(1,), out_hidden_size=48,
        tokens_per_second=2,
    )  # fmt: skip
    torch.manual_seed(1)
    tower = VisionTower(vision).requires_grad_(False).to(device)
    for parameter in tower.parameters():
        parameter.normal_(0.3 if parameter.ndim == 1 else 0.0, 0.2)
    grids = [Grid(1, 4, 6), Grid(2, 2, 4), Grid(1, 10, 14)]
    patches = torch.randn(sum(grid.num_patches for grid in grids), vision.patch_dim, device=device)
    expected = tower(patches, grids)
    fused = FusedVisionTower(tower, TritonVisionOperations())
    torch.testing.assert_close(fused.forward(patches, grids), expected, rtol=1e-4, atol=1e-4)
