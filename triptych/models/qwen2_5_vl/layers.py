"""Layers that the vision tower and the language model share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        if states.dtype == torch.float32:
            # One call in place of six: on a CPU a small model's step is mostly the cost of calls.
            return F.rms_norm(states, self.weight.shape, self.weight, self.eps)
        wide = states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(states.dtype)


class GatedMLP(nn.Module):
    """SwiGLU: gate and up projections in one linear, then down."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, states: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(states).chunk(2, dim=-1)
        output: Tensor = self.down_proj(F.silu(gate) * up)
        return output


def store_by_columns(module: nn.Module) -> None:
    """Lays the weights of all linears out column by column; their shapes stay. On a CPU a float32 weight is read up to
    twice as fast so when it meets few rows."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear.weight.data = linear.weight.data.t().contiguous().t()
