# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""A linear layer for the tokens of a batch of decodes, up to 128: bound by the reading of its weight.

The tokens fill the rows of one tile of the matrix units, and the weight is cut into so many programs that all
multiprocessors read at the same time: by outputs and, where those are few, by inputs as well. The sums of the parts
stay apart, in float32; the norm that follows adds them up (`fused_add_rms_norm`). Of a gate_up projection one program
takes the gates and the ups of its outputs, so that SiLU and product are part of it. Tiles come through the bulk tensor
copy engine, which is quicker than loads by address: compute capability 9.0.
Floor: bytes. N * K elements of weight (2 * N * K when gated).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from triptych.kernels.activation import silu_and_mul_reference
from triptych.kernels.launch import launch_options, power_of_two_at_least, wait_for_previous
from triptych.kernels.paged import dot_precision

MAX_TOKENS = 128
# Rows of the smallest tile of a warp group's matrix unit.
_MIN_BLOCK_TOKENS = 64


@dataclass(frozen=True)
class BatchTiling:
    """block_out outputs a program (as many gates and ups when gated), block_in inputs at a time, num_splits programs
    that share the inputs."""

    block_out: int
    block_in: int
    num_splits: int = 1
    num_warps: int = 4
    num_stages: int = 4

    def serves(self, weight: Tensor, is_gated: bool = False) -> bool:
        """Whether the weight falls into whole tiles."""
        num_rows, num_inputs = weight.shape
        num_outputs = num_rows // 2 if is_gated else num_rows
        return num_outputs % self.block_out == 0 and num_inputs % self.block_in == 0


def batch_linear(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    is_gated: bool = False,
    tiling: BatchTiling,
    out: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """`out` [T, N] = linear(states) for T <= 128 tokens; `states` [T, K], contiguous.

    weight: [N, K], or [2 * N, K] when gated, gates first: then out = silu(gate) * up. bias: [rows of weight].
    With several splits `out` is float32 [num_splits, T, N], to be added up; there is no bias and no gate then.
    """
    num_tokens, num_inputs = states.shape
    num_outputs = weight.shape[0] // 2 if is_gated else weight.shape[0]
    num_splits = tiling.num_splits
    shape = (num_tokens, num_outputs) if num_splits == 1 else (num_splits, num_tokens, num_outputs)
    if out is None:
        out = torch.empty(shape, dtype=states.dtype if num_splits == 1 else torch.float32, device=states.device)
    assert num_tokens <= MAX_TOKENS, f"{num_tokens} tokens, at most {MAX_TOKENS}"
    assert states.is_contiguous() and weight.is_contiguous() and out.is_contiguous() and weight.shape[1] == num_inputs
    assert out.shape == shape and tiling.serves(weight, is_gated)
    assert num_splits == 1 or (bias is None and not is_gated)
    if num_tokens == 0:
        return out
    block_tokens = max(_MIN_BLOCK_TOKENS, power_of_two_at_least(num_tokens))
    _batch_kernel[(num_outputs // tiling.block_out, num_splits)](
        # Rows behind the tokens are read as zeros.
        TensorDescriptor.from_tensor(states, [block_tokens, tiling.block_in]),
        TensorDescriptor.from_tensor(weight, [tiling.block_out, tiling.block_in]),
        weight if bias is None else bias,
        out,
        num_tokens,
        NUM_OUTPUTS=num_outputs,
        NUM_INPUTS=num_inputs,
        IS_GATED=is_gated,
        HAS_BIAS=bias is not None,
        NUM_SPLITS=num_splits,
        BLOCK_TOKENS=block_tokens,
        BLOCK_OUT=tiling.block_out,
        BLOCK_IN=tiling.block_in,
        PRECISION=dot_precision(states.dtype),
        PDL=pdl,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **launch_options(pdl),
    )
    return out


def batch_linear_reference(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, *, is_gated: bool = False
) -> Tensor:
    output = F.linear(states, weight, bias)
    return silu_and_mul_reference(output) if is_gated else output


@triton.jit(do_not_specialize=["num_tokens"])
def _batch_kernel(
    states, weight, bias, out, num_tokens,
    NUM_OUTPUTS: tl.constexpr, NUM_INPUTS: tl.constexpr, IS_GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    NUM_SPLITS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    NUM_TILES: tl.constexpr = NUM_INPUTS // BLOCK_IN
    split = tl.program_id(1)
    first_output = tl.program_id(0) * BLOCK_OUT
    first_input = (split * NUM_TILES) // NUM_SPLITS * BLOCK_IN
    end_input = ((split + 1) * NUM_TILES) // NUM_SPLITS * BLOCK_IN
    wait_for_previous(PDL)

    total = tl.zeros((BLOCK_TOKENS, BLOCK_OUT), tl.float32)
    up_total = tl.zeros((BLOCK_TOKENS, BLOCK_OUT), tl.float32)
    for start in range(first_input, end_input, BLOCK_IN):
        values = states.load([0, start])
        gate = weight.load([first_output, start])
        total = tl.dot(values, gate.T, total, input_precision=PRECISION)
        if IS_GATED:
            up = weight.load([NUM_OUTPUTS + first_output, start])
            up_total = tl.dot(values, up.T, up_total, input_precision=PRECISION)

    tokens = tl.arange(0, BLOCK_TOKENS)
    outputs = first_output + tl.arange(0, BLOCK_OUT)
    if HAS_BIAS:
        total += tl.load(bias + outputs).to(tl.float32)[None, :]
        if IS_GATED:
            up_total += tl.load(bias + NUM_OUTPUTS + outputs).to(tl.float32)[None, :]
    dtype = out.dtype.element_ty
    if IS_GATED:
        gates = total.to(dtype).to(tl.float32)
        activated = (gates / (1.0 + tl.exp(-gates))).to(dtype).to(tl.float32)
        total = activated * up_total.to(dtype).to(tl.float32)
    rows = (split * num_tokens + tokens)[:, None] * NUM_OUTPUTS + outputs[None, :]
    tl.store(out + rows, total.to(dtype), mask=(tokens < num_tokens)[:, None])
