# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""A linear layer for a few tokens, bound by the reading of its weight, with what stands around it folded in.

For one sequence the step is a chain of such reads, each too short to hide the start and the end of a kernel. So the
norm before, the SiLU and product after, and the residual addition after are part of the same kernel, and the first
tile of the weight is asked for before the kernel before has ended (pdl=True).
Two kernels: `vector` multiplies and adds in float32 (1 to 4 tokens), `matrix` uses the matrix units (up to 16).
Floor: bytes. N * K elements of weight (2 * N * K when gated).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from triptych.kernels.activation import silu_and_mul_reference
from triptych.kernels.launch import launch_options, power_of_two_at_least, wait_for_previous
from triptych.kernels.norm import rms_norm_reference
from triptych.kernels.paged import dot_precision

MAX_TOKENS = 16
_MAX_VECTOR_TOKENS = 4
_MATRIX_TOKENS = 16


@dataclass(frozen=True)
class SkinnyTiling:
    """block_out outputs a program, block_in inputs at a time. num_stages: tiles on their way beside the one in use; a
    vector kernel has 1 or 2 of them, and asks for them before it waits for the kernel before."""

    kind: str
    block_out: int
    block_in: int
    num_warps: int
    num_stages: int = 1


def choose_tiling(num_tokens: int, is_gated: bool) -> SkinnyTiling:
    """Small blocks, so that each of 132 multiprocessors has several programs; a gated one reads two rows an output."""
    if num_tokens > _MAX_VECTOR_TOKENS:
        return SkinnyTiling("matrix", 16, 256, 2, 4)
    return SkinnyTiling("vector", 2 if is_gated else 4, 1024 if num_tokens == 1 else 512, 4)


def skinny_linear(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_scales: Tensor | None = None,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
    out: Tensor | None = None,
    tiling: SkinnyTiling | None = None,
    pdl: bool = False,
) -> Tensor:
    """`out` [T, N] = residual + linear(norm(states)) for T <= 16 tokens; `states` [T, K], contiguous.

    weight: [N, K], or [2 * N, K] when gated, gates first: then out = silu(gate) * up. bias: [rows of weight].
    weight_scales: float32 [rows of weight], what a weight in e4m3 is to be multiplied with (vector kernel).
    residual: [T, N]; may be `out`. norm_weight: [K] turns the RMSNorm before on. Sums are float32; what is folded in is
    rounded less often than separate kernels would round it.
    """
    num_tokens, num_inputs = states.shape
    num_outputs = weight.shape[0] // 2 if is_gated else weight.shape[0]
    out = torch.empty((num_tokens, num_outputs), dtype=states.dtype, device=states.device) if out is None else out
    assert num_tokens <= MAX_TOKENS, f"{num_tokens} tokens, at most {MAX_TOKENS}"
    assert states.is_contiguous() and weight.is_contiguous() and out.is_contiguous() and weight.shape[1] == num_inputs
    assert residual is None or (residual.is_contiguous() and residual.shape == out.shape)
    if num_tokens == 0:
        return out
    tiling = choose_tiling(num_tokens, is_gated) if tiling is None else tiling
    is_vector = tiling.kind == "vector"
    assert is_vector or weight_scales is None
    kernel = _vector_kernel if is_vector else _matrix_kernel
    kernel[(triton.cdiv(num_outputs, tiling.block_out),)](
        states,
        weight,
        weight if bias is None else bias,
        weight if weight_scales is None else weight_scales,
        states if residual is None else residual,
        states if norm_weight is None else norm_weight,
        out,
        eps,
        NUM_TOKENS=num_tokens,
        NUM_OUTPUTS=num_outputs,
        NUM_INPUTS=num_inputs,
        IS_GATED=is_gated,
        HAS_BIAS=bias is not None,
        HAS_SCALE=weight_scales is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_NORM=norm_weight is not None,
        BLOCK_TOKENS=power_of_two_at_least(num_tokens) if is_vector else _MATRIX_TOKENS,
        BLOCK_OUT=tiling.block_out,
        BLOCK_IN=tiling.block_in,
        PRECISION=dot_precision(states.dtype),
        IS_FAR_AHEAD=is_vector and tiling.num_stages > 1,
        PDL=pdl,
        num_warps=tiling.num_warps,
        num_stages=1 if is_vector else tiling.num_stages,
        **launch_options(pdl),
    )
    return out


def skinny_linear_reference(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
) -> Tensor:
    if norm_weight is not None:
        states = rms_norm_reference(states, norm_weight, eps)
    output = F.linear(states, weight, bias)
    if is_gated:
        output = silu_and_mul_reference(output)
    return output if residual is None else residual + output


@triton.jit
def _finish(
    total, up_total, squares, bias, weight_scales, residual, out, eps, tokens, outputs, is_inside,
    NUM_OUTPUTS: tl.constexpr, NUM_INPUTS: tl.constexpr, IS_GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """From sums to outputs, [T, N] or transposed as `tokens` and `outputs` broadcast. squares: sums of squared
    inputs."""
    dtype = out.dtype.element_ty
    if HAS_SCALE:
        total *= tl.load(weight_scales + outputs, mask=outputs < NUM_OUTPUTS, other=0.0)
        if IS_GATED:
            up_total *= tl.load(weight_scales + NUM_OUTPUTS + outputs, mask=outputs < NUM_OUTPUTS, other=0.0)
    if HAS_NORM:
        # The norm is linear but for this factor, so it may come after the products.
        inverse_rms = tl.rsqrt(squares / NUM_INPUTS + eps)
        total *= inverse_rms
        up_total *= inverse_rms
    if HAS_BIAS:
        is_output = outputs < NUM_OUTPUTS
        total += tl.load(bias + outputs, mask=is_output, other=0.0).to(tl.float32)
        if IS_GATED:
            up_total += tl.load(bias + NUM_OUTPUTS + outputs, mask=is_output, other=0.0).to(tl.float32)
    if IS_GATED:
        gate = total.to(dtype).to(tl.float32)
        activated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        total = activated * up_total.to(dtype).to(tl.float32)
    offsets = tokens * NUM_OUTPUTS + outputs
    if HAS_RESIDUAL:
        total += tl.load(residual + offsets, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(out + offsets, total.to(dtype), mask=is_inside)


@triton.jit
def _load_rows(rows, columns, is_output, NUM_INPUTS: tl.constexpr):
    """A tile of the weight; each value is read once, and need not stay in the cache."""
    return tl.load(rows + columns, mask=is_output & (columns < NUM_INPUTS), other=0.0, eviction_policy="evict_first")


@triton.jit
def _vector_kernel(
    states, weight, bias, weight_scales, residual, norm_weight, out, eps,
    NUM_TOKENS: tl.constexpr, NUM_OUTPUTS: tl.constexpr, NUM_INPUTS: tl.constexpr, IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, PRECISION: tl.constexpr,
    IS_FAR_AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # Tiles are [token, output, input].
    tokens = tl.arange(0, BLOCK_TOKENS)[:, None, None]
    outputs = (tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT))[None, :, None]
    inputs = tl.arange(0, BLOCK_IN)[None, None, :]
    is_output = outputs < NUM_OUTPUTS
    gate_rows = weight + outputs.to(tl.int64) * NUM_INPUTS
    up_rows = gate_rows + NUM_OUTPUTS * NUM_INPUTS
    next_gate = _load_rows(gate_rows, inputs, is_output, NUM_INPUTS)
    next_up = next_gate
    if IS_GATED:
        next_up = _load_rows(up_rows, inputs, is_output, NUM_INPUTS)
    third_gate, third_up = next_gate, next_up
    if IS_FAR_AHEAD:
        third_gate = _load_rows(gate_rows, inputs + BLOCK_IN, is_output, NUM_INPUTS)
        if IS_GATED:
            third_up = _load_rows(up_rows, inputs + BLOCK_IN, is_output, NUM_INPUTS)
    wait_for_previous(PDL)

    total = tl.zeros((BLOCK_TOKENS, BLOCK_OUT, BLOCK_IN), tl.float32)
    up_total = total
    squares = tl.zeros((BLOCK_TOKENS, 1, BLOCK_IN), tl.float32)
    for start in range(0, NUM_INPUTS, BLOCK_IN):
        gate, up = next_gate, next_up
        columns = start + inputs
        if IS_FAR_AHEAD:
            next_gate = third_gate
            third_gate = _load_rows(gate_rows, columns + 2 * BLOCK_IN, is_output, NUM_INPUTS)
            if IS_GATED:
                next_up = third_up
                third_up = _load_rows(up_rows, columns + 2 * BLOCK_IN, is_output, NUM_INPUTS)
        else:
            next_gate = _load_rows(gate_rows, columns + BLOCK_IN, is_output, NUM_INPUTS)
            if IS_GATED:
                next_up = _load_rows(up_rows, columns + BLOCK_IN, is_output, NUM_INPUTS)
        is_state = (tokens < NUM_TOKENS) & (columns < NUM_INPUTS)
        values = tl.load(states + tokens * NUM_INPUTS + columns, mask=is_state, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += values * values
            values *= tl.load(norm_weight + columns, mask=columns < NUM_INPUTS, other=0.0).to(tl.float32)
        total += gate.to(tl.float32) * values
        if IS_GATED:
            up_total += up.to(tl.float32) * values

    token_rows = tl.arange(0, BLOCK_TOKENS)[:, None]
    output_columns = (tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT))[None, :]
    up_sum = tl.sum(up_total, axis=2) if IS_GATED else 0.0
    _finish(
        tl.sum(total, axis=2), up_sum, tl.sum(squares, axis=2), bias, weight_scales, residual, out, eps, token_rows,
        output_columns,
        (token_rows < NUM_TOKENS) & (output_columns < NUM_OUTPUTS),
        NUM_OUTPUTS, NUM_INPUTS, IS_GATED, HAS_BIAS, HAS_SCALE, HAS_RESIDUAL, HAS_NORM,
    )  # fmt: skip


@triton.jit
def _matrix_kernel(
    states, weight, bias, weight_scales, residual, norm_weight, out, eps,
    NUM_TOKENS: tl.constexpr, NUM_OUTPUTS: tl.constexpr, NUM_INPUTS: tl.constexpr, IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, PRECISION: tl.constexpr,
    IS_FAR_AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # The weight is the left operand: its rows fill the 16 rows of the matrix units, the tokens are padded to 16
    # columns.
    tokens = tl.arange(0, BLOCK_TOKENS)
    outputs = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_output = outputs < NUM_OUTPUTS
    gate_rows = weight + outputs.to(tl.int64)[:, None] * NUM_INPUTS
    up_rows = gate_rows + NUM_OUTPUTS * NUM_INPUTS
    wait_for_previous(PDL)

    total = tl.zeros((BLOCK_OUT, BLOCK_TOKENS), tl.float32)
    up_total = tl.zeros((BLOCK_OUT, BLOCK_TOKENS), tl.float32)
    squares = tl.zeros((BLOCK_TOKENS,), tl.float32)
    for start in range(0, NUM_INPUTS, BLOCK_IN):
        columns = start + tl.arange(0, BLOCK_IN)
        is_input = columns < NUM_INPUTS
        is_state = (tokens < NUM_TOKENS)[:, None] & is_input[None, :]
        values = tl.load(states + tokens[:, None] * NUM_INPUTS + columns[None, :], mask=is_state, other=0.0)
        if HAS_NORM:
            wide = values.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            scale = tl.load(norm_weight + columns, mask=is_input, other=0.0).to(tl.float32)
            values = (wide * scale[None, :]).to(values.dtype)
        is_loaded = is_output[:, None] & is_input[None, :]
        gate = tl.load(gate_rows + columns[None, :], mask=is_loaded, other=0.0)
        total = tl.dot(gate, tl.trans(values), total, input_precision=PRECISION)
        if IS_GATED:
            up = tl.load(up_rows + columns[None, :], mask=is_loaded, other=0.0)
            up_total = tl.dot(up, tl.trans(values), up_total, input_precision=PRECISION)

    is_inside = is_output[:, None] & (tokens < NUM_TOKENS)[None, :]
    _finish(
        total, up_total, squares[None, :], bias, weight_scales, residual, out, eps, tokens[None, :], outputs[:, None],
        is_inside,
        NUM_OUTPUTS, NUM_INPUTS, IS_GATED, HAS_BIAS, HAS_SCALE, HAS_RESIDUAL, HAS_NORM,
    )  # fmt: skip
