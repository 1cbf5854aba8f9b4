# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""FP8 (e4m3) linears: weights scaled per output channel, activations per token as they come.

Floor of quantize_per_token: bytes, T * K * (element size + 1). Floor of fp8_linear: the weight's N * K bytes for few
tokens, 2 * T * N * K operations at twice the bf16 rate for many.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import launch_options, wait_for_previous

FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = 448.0
_BLOCK = 4096


def quantize_per_token(
    states: Tensor, *, out: Tensor | None = None, scales: Tensor | None = None, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """`states` [T, K] as (e4m3 [T, K], float32 scales [T, 1]): value = e4m3 * scale, the row's largest becomes 448."""
    num_rows, size = states.shape
    out = torch.empty((num_rows, size), dtype=FP8_DTYPE, device=states.device) if out is None else out
    scales = torch.empty((num_rows, 1), dtype=torch.float32, device=states.device) if scales is None else scales
    assert states.stride(1) == 1 and out.is_contiguous() and scales.is_contiguous()
    if num_rows == 0:
        return out, scales
    _quantize_per_token_kernel[(num_rows,)](
        states, out, scales, states.stride(0), SIZE=size, BLOCK=_BLOCK, PDL=pdl, num_warps=8, **launch_options(pdl)
    )
    return out, scales


def quantize_per_token_reference(states: Tensor) -> tuple[Tensor, Tensor]:
    wide = states.float()
    scales = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (wide / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE), scales


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` [N, K] as (e4m3 [N, K], float32 scales [1, N]), one scale per output channel; done once, at load."""
    quantized, scales = quantize_per_token_reference(weight)
    return quantized, scales.t().contiguous()


def fp8_linear(
    states: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """states [T, K] e4m3 with scales [T, 1] times weight [N, K] e4m3 with scales [1, N], plus bias [N]: [T, N] in
    `dtype`.

    K and N must be multiples of 16. The GPU's row-wise kernel is torch's own.
    """
    return torch._scaled_mm(
        states, weight.t(), scale_a=scales, scale_b=weight_scales, bias=bias, out_dtype=dtype, use_fast_accum=True
    )


def fp8_linear_reference(
    states: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Float32."""
    product = (states.float() * scales) @ (weight.float() * weight_scales.t()).t()
    return product if bias is None else product + bias.float()


@triton.jit
def _quantize_per_token_kernel(
    states, out, scales, states_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, SIZE, BLOCK):
        columns = first + lanes
        values = tl.load(states + row * states_stride + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(values))
    scale = tl.maximum(tl.max(largest, axis=0), 1e-12) / 448.0
    tl.store(scales + row, scale)
    # The second read comes from the cache.
    for first in range(0, SIZE, BLOCK):
        columns = first + lanes
        is_inside = columns < SIZE
        values = tl.load(states + row * states_stride + columns, mask=is_inside, other=0.0).to(tl.float32)
        scaled = tl.minimum(tl.maximum(values / scale, -448.0), 448.0)
        tl.store(out + row * SIZE + columns, scaled.to(out.dtype.element_ty), mask=is_inside)
