# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""SiLU(gate) * up over the packed output of the gate_up projection. Floor: bytes, 3 * T * intermediate elements."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from triptych.kernels.launch import launch_options, wait_for_previous

_BLOCK = 1024


def silu_and_mul(gate_up: Tensor, *, out: Tensor | None = None, pdl: bool = False) -> Tensor:
    """`gate_up` [T, 2 * intermediate], gates first, to `out` [T, intermediate] of the same dtype."""
    num_rows, width = gate_up.shape
    size = width // 2
    out = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    assert gate_up.stride(1) == out.stride(1) == 1 and out.shape == (num_rows, size)
    if num_rows == 0:
        return out
    _silu_and_mul_kernel[(num_rows, triton.cdiv(size, _BLOCK))](
        gate_up,
        out,
        gate_up.stride(0),
        out.stride(0),
        SIZE=size,
        BLOCK=_BLOCK,
        PDL=pdl,
        num_warps=4,
        **launch_options(pdl),
    )
    return out


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@triton.jit
def _silu_and_mul_kernel(
    gate_up, out, gate_up_stride, out_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < SIZE
    gates = gate_up + row * gate_up_stride + columns
    gate = tl.load(gates, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gates + SIZE, mask=is_inside, other=0.0).to(tl.float32)
    activated = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * out_stride + columns, (activated * up).to(out.dtype.element_ty), mask=is_inside)
