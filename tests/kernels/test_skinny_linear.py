"""The linear of few tokens, in both kernels and with all that can be folded in."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from triptych.kernels.skinny_linear import SkinnyTiling, choose_tiling, skinny_linear, skinny_linear_reference

TILINGS = [SkinnyTiling("vector", 4, 64, 4), SkinnyTiling("vector", 4, 32, 4, 2), SkinnyTiling("matrix", 16, 64, 2, 3)]


@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: f"{tiling.kind}{tiling.num_stages}")
@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("is_normed", [False, True])
def test_skinny_linear(
    tiling: SkinnyTiling, num_tokens: int, is_gated: bool, is_normed: bool, device: torch.device
) -> None:
    num_inputs, num_outputs = 144, 42  # neither fills its blocks
    states = torch.randn(num_tokens, num_inputs, device=device) * 3
    weight = torch.randn(num_outputs * (2 if is_gated else 1), num_inputs, device=device) / 12
    bias = torch.randn(weight.shape[0], device=device)
    residual = torch.randn(num_tokens, num_outputs, device=device)
    norm_weight = torch.rand(num_inputs, device=device) + 0.5 if is_normed else None
    options = {"residual": residual, "norm_weight": norm_weight, "eps": 1e-6, "is_gated": is_gated}
    expected = skinny_linear_reference(states, weight, bias, **options)
    actual = skinny_linear(states, weight, bias, out=torch.full_like(residual, torch.nan), tiling=tiling, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: f"{tiling.kind}{tiling.num_stages}")
def test_residual_may_be_updated_in_place_in_half_precision(
    tiling: SkinnyTiling, half_dtype: torch.dtype, device: torch.device
) -> None:
    states = torch.randn(2, 128, device=device).to(half_dtype)
    weight = (torch.randn(32, 128, device=device) / 11).to(half_dtype)
    residual = torch.randn(2, 32, device=device).to(half_dtype)
    expected = skinny_linear_reference(states, weight, residual=residual).float()
    skinny_linear(states, weight, residual=residual, out=residual, tiling=tiling)
    torch.testing.assert_close(residual.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("num_tokens", [1, 16])
def test_tilings_chosen_by_shape_are_right(num_tokens: int, device: torch.device) -> None:
    states, weight = torch.randn(num_tokens, 320, device=device), torch.randn(20, 320, device=device) / 18
    assert choose_tiling(1, False).kind == "vector" and choose_tiling(16, True).kind == "matrix"
    torch.testing.assert_close(
        skinny_linear(states, weight), skinny_linear_reference(states, weight), rtol=1e-4, atol=1e-4
    )


def test_scales_of_the_weight_come_after_the_products(device: torch.device) -> None:
    states, weight = torch.randn(1, 96, device=device), torch.randn(24, 96, device=device)
    scales, bias = torch.rand(24, device=device), torch.randn(24, device=device)
    expected = skinny_linear_reference(states, weight * scales[:, None], bias, is_gated=True)
    actual = skinny_linear(
        states, weight, bias, weight_scales=scales, is_gated=True, tiling=SkinnyTiling("vector", 2, 32, 2, 2)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
