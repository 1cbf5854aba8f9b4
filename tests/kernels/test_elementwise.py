"""Norm, activation, rotation with store, and quantisation against their references."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from triptych.kernels.activation import silu_and_mul, silu_and_mul_reference
from triptych.kernels.fp8 import fp8_linear_reference, quantize_per_token, quantize_per_token_reference, quantize_weight
from triptych.kernels.norm import (
    fused_add_rms_norm,
    fused_add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from triptych.kernels.rotary import rotary_and_store, rotary_and_store_reference, rotary_table
from triptych.models.qwen2_5_vl.rope import RotaryTable

# The interpreter cuts a float32 off where a GPU rounds it to bfloat16: two steps of 1/128.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (3, 200)])
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    states, weight = torch.randn(shape, device=device).to(dtype) * 3, torch.randn(shape[1], device=device).to(dtype)
    close(rms_norm(states, weight, 1e-6), rms_norm_reference(states, weight, 1e-6), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_add_rms_norm_updates_the_residual(dtype: torch.dtype, device: torch.device) -> None:
    states, residual = (torch.randn(3, 200, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(200, device=device).to(dtype)
    expected, expected_residual = fused_add_rms_norm_reference(states, residual, weight, 1e-6)
    out = torch.full_like(states, torch.nan)
    assert fused_add_rms_norm(states, residual, weight, 1e-6, out=out) is out
    close(out, expected, dtype)
    close(residual, expected_residual, dtype)


def test_rms_norm_reads_strided_rows_and_may_write_in_place(device: torch.device) -> None:
    wide = torch.randn(4, 3, 96, device=device)
    last_rows, weight = wide[:, -1], torch.randn(96, device=device)
    expected = rms_norm_reference(last_rows, weight, 1e-6)
    rms_norm(last_rows, weight, 1e-6, out=last_rows)
    close(last_rows, expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [48, 1300])
def test_silu_and_mul(size: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = (torch.randn(3, 2 * size, device=device) * 4).to(dtype)
    close(silu_and_mul(gate_up), silu_and_mul_reference(gate_up), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 2), (7, 1)])
def test_rotary_and_store(num_heads: int, num_kv_heads: int, dtype: torch.dtype, device: torch.device) -> None:
    head_dim, sections, page_size = 16, (2, 3, 3), 4
    table = rotary_table(64, head_dim, 1e4, device)
    qkv = torch.randn(5, (num_heads + 2 * num_kv_heads) * head_dim, device=device).to(dtype)
    positions = torch.randint(0, 64, (3, 5), device=device)
    slots = torch.tensor([7, -1, 0, 11, -1], device=device)
    caches = [torch.randn(3, page_size, num_kv_heads, head_dim, device=device).to(dtype) for _ in range(2)]
    expected_caches = [cache.clone() for cache in caches]
    expected = rotary_and_store_reference(qkv, positions, table, sections, *expected_caches, slots)
    close(rotary_and_store(qkv, positions, table, sections, *caches, slots), expected, dtype)
    for cache, expected_cache in zip(caches, expected_caches, strict=True):
        close(cache, expected_cache, dtype)


def test_the_table_rotates_as_the_model_does(device: torch.device) -> None:
    from triptych.kernels.rotary import gather_cos_sin

    positions = torch.randint(0, 300, (3, 9), device=device)
    actual = gather_cos_sin(positions, rotary_table(300, 32, 1e6, device), (4, 6, 6))
    for values, expected in zip(actual, RotaryTable(32, 1e6, (4, 6, 6)).cos_sin(positions), strict=True):
        torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("size", [64, 5000])
def test_quantize_per_token(size: int, device: torch.device) -> None:
    states = torch.randn(3, size, device=device) * torch.tensor([[1.0], [100.0], [0.0]], device=device)
    actual, scales = quantize_per_token(states)
    expected, expected_scales = quantize_per_token_reference(states)
    torch.testing.assert_close(scales, expected_scales)
    # The interpreter loses the carry when it rounds up to a power of two (124.3 becomes 64): those are left out.
    mantissa, _ = torch.frexp(expected.float())
    is_compared = (mantissa.abs() != 0.5) | (actual.float() == expected.float())
    assert float(is_compared.float().mean()) > 0.9
    torch.testing.assert_close(actual.float()[is_compared], expected.float()[is_compared], rtol=1 / 8, atol=2.0**-9)


def test_fp8_linear_reference_is_near_the_float_product() -> None:
    states, weight, bias = torch.randn(4, 256), torch.randn(32, 256), torch.randn(32)
    product = fp8_linear_reference(*quantize_per_token_reference(states), *quantize_weight(weight), bias)
    expected = states @ weight.t() + bias
    assert float((product - expected).norm() / expected.norm()) < 0.05
