"""Linear layers in FP8 (e4m3): one scale per output channel for the weight, one per token for what comes in."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.models.qwen2_5_vl.language import LanguageModel

FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = 448.0
# The linears of a layer. Embeddings and the head keep their dtype: they are read by row, and decide between tokens.
_LINEARS = (("self_attn", "qkv_proj"), ("self_attn", "o_proj"), ("mlp", "gate_up_proj"), ("mlp", "down_proj"))


class Fp8Linear(nn.Module):
    """weight [N, K] e4m3, weight_scale [N, 1] float32, bias [N] in the dtype of the activations, or None.

    On a GPU (compute capability 8.9) activations are quantized token by token as they come; elsewhere the weight is
    widened, which is slow but right.
    """

    def __init__(self, in_features: int, out_features: int, has_bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty((out_features, in_features), dtype=FP8_DTYPE), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty((out_features, 1), dtype=torch.float32), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if has_bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Fp8Linear:
        """The linear's weight, rounded; its bias is taken as it is."""
        with torch.device("meta"):
            quantized = cls(linear.in_features, linear.out_features, linear.bias is not None)
        wide = linear.weight.detach().float()
        scales = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
        rounded = (wide / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE)
        state = {"weight": rounded, "weight_scale": scales}
        if linear.bias is not None:
            state["bias"] = linear.bias.detach()
        quantized.load_state_dict(state, assign=True)
        return quantized.requires_grad_(False)

    def forward(self, states: Tensor) -> Tensor:
        """[T, in_features] to [T, out_features] of the same dtype."""
        if not states.is_cuda:
            return F.linear(states, (self.weight.float() * self.weight_scale).to(states.dtype), self.bias)
        # Triton is an optional package, and slow to import.
        from triptych.kernels.fp8 import fp8_linear, quantize_per_token

        quantized, scales = quantize_per_token(states)
        return fp8_linear(quantized, scales, self.weight, self.weight_scale.view(1, -1), self.bias, dtype=states.dtype)


def quantize_language_model(model: LanguageModel) -> LanguageModel:
    """Rounds the linears of all layers that are not in FP8 already, one after the other; returns the model."""
    for layer in model.layers:
        for parent_name, name in _LINEARS:
            parent = getattr(layer, parent_name)
            if isinstance(getattr(parent, name), nn.Linear):
                setattr(parent, name, Fp8Linear.from_linear(getattr(parent, name)))
    return model


def expect_fp8(model: LanguageModel, quantized_names: Collection[str]) -> None:
    """Makes room for FP8 weights in those linears of a model on the meta device whose names are given."""
    for index, layer in enumerate(model.layers):
        for parent_name, name in _LINEARS:
            if f"layers.{index}.{parent_name}.{name}" not in quantized_names:
                continue
            parent = getattr(layer, parent_name)
            linear = getattr(parent, name)
            with torch.device("meta"):
                replacement = Fp8Linear(linear.in_features, linear.out_features, linear.bias is not None)
            setattr(parent, name, replacement)
