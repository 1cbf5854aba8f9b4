"""The linear of a batch of decodes: whole, in parts that the norm after adds up, and with the gate folded in."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from triptych.kernels.batch_linear import MAX_TOKENS, BatchTiling, batch_linear, batch_linear_reference
from triptych.kernels.norm import fused_add_rms_norm, fused_add_rms_norm_reference

EPS = 1e-6


@pytest.mark.parametrize("num_tokens", [1, 5, 64, 65, MAX_TOKENS])
@pytest.mark.parametrize("is_gated", [False, True])
def test_whole(num_tokens: int, is_gated: bool, device: torch.device) -> None:
    states = torch.randn(num_tokens, 96, device=device)
    weight = torch.randn(64 * (2 if is_gated else 1), 96, device=device) / 10
    bias = torch.randn(weight.shape[0], device=device)
    out = torch.full((num_tokens, 64), torch.nan, device=device)
    batch_linear(states, weight, bias, is_gated=is_gated, tiling=BatchTiling(16, 32), out=out)
    expected = batch_linear_reference(states, weight, bias, is_gated=is_gated)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_splits", [2, 3, 4])
def test_parts_are_added_up_by_the_norm(num_splits: int, half_dtype: torch.dtype, device: torch.device) -> None:
    """Five tiles of inputs, so that parts differ in length."""
    states = torch.randn(7, 160, device=device).to(half_dtype)
    weight = (torch.randn(96, 160, device=device) / 12).to(half_dtype)
    residual, norm_weight = torch.randn(7, 96, device=device).to(half_dtype), torch.rand(96, device=device) + 0.5
    parts = batch_linear(states, weight, tiling=BatchTiling(32, 32, num_splits))
    assert parts.shape == (num_splits, 7, 96) and parts.dtype == torch.float32
    torch.testing.assert_close(parts.sum(0), batch_linear_reference(states.float(), weight.float()), rtol=0, atol=1e-3)
    expected, expected_residual = fused_add_rms_norm_reference(
        batch_linear_reference(states, weight), residual, norm_weight.to(half_dtype), EPS
    )
    normed = fused_add_rms_norm(parts, residual, norm_weight.to(half_dtype), EPS)
    assert normed.dtype == half_dtype
    torch.testing.assert_close(residual.float(), expected_residual.float(), rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(normed.float(), expected.float(), rtol=1e-2, atol=1e-2)


def test_a_weight_must_fall_into_tiles(device: torch.device) -> None:
    weight = torch.randn(96, 160, device=device)
    assert BatchTiling(32, 32).serves(weight) and BatchTiling(16, 32).serves(weight, is_gated=True)
    assert not BatchTiling(64, 32).serves(weight) and not BatchTiling(32, 64).serves(weight)
