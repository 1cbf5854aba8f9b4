# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""RMSNorm, alone and together with the residual addition before it.

Floor: bytes. rms_norm moves 2 * T * hidden elements, fused_add_rms_norm 4 * T * hidden; each row is read once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import launch_options, power_of_two_at_least, wait_for_previous


def rms_norm(states: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None, pdl: bool = False) -> Tensor:
    """Norm over the last dimension of `states` [T, hidden] in float32, rounded, times `weight` [hidden].

    Rows may be strided. Returns `out` [T, hidden], in the dtype of `states`; it may be `states`.
    """
    out = torch.empty(states.shape, dtype=states.dtype, device=states.device) if out is None else out
    _launch(states, states, weight, eps, out, has_residual=False, pdl=pdl)
    return out


def fused_add_rms_norm(
    states: Tensor, residual: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None, pdl: bool = False
) -> Tensor:
    """`residual` [T, hidden] becomes residual + states; returns its RMSNorm in `out`, which may be `states`.

    The sum is rounded to the dtype of `residual` before it is normed, as two separate operations would. `states` may
    be float32 [num_parts, T, hidden], the parts of a sum (`batch_linear`), which are added up first.
    """
    out = torch.empty_like(residual) if out is None else out
    _launch(states, residual, weight, eps, out, has_residual=True, pdl=pdl)
    return out


def rms_norm_reference(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = states.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(states.dtype)


def fused_add_rms_norm_reference(states: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed, new residual); changes nothing in place."""
    residual = residual + states
    return rms_norm_reference(residual, weight, eps), residual


def _launch(
    states: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor, *, has_residual: bool, pdl: bool
) -> None:
    num_parts = states.shape[0] if states.ndim == 3 else 1
    num_rows, hidden_size = states.shape[-2:]
    assert states.stride(-1) == residual.stride(1) == out.stride(1) == 1 and weight.shape == (hidden_size,)
    if num_rows == 0:
        return
    block = power_of_two_at_least(hidden_size)
    _rms_norm_kernel[(num_rows,)](
        states,
        residual,
        weight,
        out,
        eps,
        states.stride(-2),
        residual.stride(0),
        out.stride(0),
        states.stride(0),
        NUM_PARTS=num_parts,
        SIZE=hidden_size,
        BLOCK=block,
        HAS_RESIDUAL=has_residual,
        PDL=pdl,
        num_warps=min(8, max(1, block // 512)),
        **launch_options(pdl),
    )


@triton.jit
def _rms_norm_kernel(
    states,
    residual,
    weight,
    out,
    eps,
    states_stride,
    residual_stride,
    out_stride,
    part_stride,
    NUM_PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < SIZE
    scale = tl.load(weight + columns, mask=is_inside, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    part = states + row * states_stride + columns
    values = tl.load(part, mask=is_inside, other=0.0).to(tl.float32)
    for index in tl.static_range(1, NUM_PARTS):
        values += tl.load(part + index * part_stride, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual_row = residual + row * residual_stride + columns
        values += tl.load(residual_row, mask=is_inside, other=0.0).to(tl.float32)
        rounded = values.to(residual.dtype.element_ty)
        tl.store(residual_row, rounded, mask=is_inside)
        values = rounded.to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    normed = (values * inverse_rms).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * out_stride + columns, (normed * scale).to(out.dtype.element_ty), mask=is_inside)
