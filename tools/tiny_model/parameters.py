"""All weights as slices of one flat tensor: an optimizer step, a cast or a moving average is one kernel each."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.tiny_model.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the network. `parts` names the checkpoint's tensors that it is the concatenation of (by rows)."""

    name: str
    shape: tuple[int, ...]
    std: float
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    fill: float = 0.0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        return len(self.shape) > 1


def network_weights(shape: ModelShape) -> list[Weight]:
    """Every weight with its starting scale, under the names that real Qwen2.5-VL checkpoints use."""
    vision, hidden = shape.vision_hidden, shape.hidden
    merged = 4 * vision
    weights = [_linear("visual.patch_embed.proj", vision, shape.patch_values, checkpoint_shape=(vision, 3, 2, 14, 14))]
    for index in range(shape.vision_depth):
        block = f"visual.blocks.{index}"
        residual = 1.0 / math.sqrt(2 * shape.vision_depth)
        inner = shape.vision_intermediate
        weights += [
            _norm(f"{block}.norm1", vision),
            *_biased(f"{block}.attn.qkv", 3 * vision, vision),
            *_biased(f"{block}.attn.proj", vision, vision, residual),
            _norm(f"{block}.norm2", vision),
            *_fused(f"{block}.mlp.gate_up", vision, {f"{block}.mlp.gate_proj": inner, f"{block}.mlp.up_proj": inner}),
            *_biased(f"{block}.mlp.down_proj", vision, inner, residual),
        ]
    weights += [
        _norm("visual.merger.ln_q", vision),
        *_biased("visual.merger.mlp.0", merged, merged),
        *_biased("visual.merger.mlp.2", hidden, merged, 0.3),
        Weight(
            "model.embed_tokens.weight",
            (shape.vocabulary, hidden),
            0.05,
            (("model.embed_tokens.weight", (shape.vocabulary, hidden)),),
        ),
    ]
    for index in range(shape.layers):
        layer = f"model.layers.{index}"
        residual = 1.0 / math.sqrt(2 * shape.layers)
        queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
        attention = f"{layer}.self_attn"
        heads = {f"{attention}.q_proj": queries, f"{attention}.k_proj": keys, f"{attention}.v_proj": keys}
        halves = {f"{layer}.mlp.gate_proj": shape.intermediate, f"{layer}.mlp.up_proj": shape.intermediate}
        weights += [
            _norm(f"{layer}.input_layernorm", hidden),
            *_fused(f"{attention}.qkv", hidden, heads),
            _linear(f"{attention}.o_proj", hidden, queries, residual),
            _norm(f"{layer}.post_attention_layernorm", hidden),
            _fused(f"{layer}.mlp.gate_up", hidden, halves)[0],
            _linear(f"{layer}.mlp.down_proj", hidden, shape.intermediate, residual),
        ]
    return [*weights, _norm("model.norm", hidden)]


def dense_head_weights(shape: ModelShape, num_classes: int) -> list[Weight]:
    """The head of the dense loss: trained with the rest, left out of the checkpoint."""
    weight = Weight("dense.weight", (num_classes, shape.hidden), 1.0 / math.sqrt(shape.hidden), ())
    return [weight, Weight("dense.bias", (num_classes,), 0.0, ())]


class FlatParameters:
    """`master` (float32) is what the optimizer changes; `compute` (float32 or bfloat16) is what the network reads, and
    `gradient` is where backward adds. The decayed weights come first: `num_decayed` values."""

    def __init__(self, weights: list[Weight], device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.weights = sorted(weights, key=lambda weight: not weight.decays)
        self.num_decayed = sum(weight.size for weight in self.weights if weight.decays)
        generator = torch.Generator().manual_seed(seed)
        pieces = [torch.randn(weight.size, generator=generator) * weight.std + weight.fill for weight in self.weights]
        self.master = torch.cat(pieces).to(device)
        self.compute = torch.empty_like(self.master, dtype=dtype)
        self.gradient = torch.zeros_like(self.compute)
        self.tensors: dict[str, Tensor] = {}
        offset = 0
        for weight in self.weights:
            tensor = self.compute[offset : offset + weight.size].view(weight.shape).detach().requires_grad_()
            tensor.grad = self.gradient[offset : offset + weight.size].view(weight.shape)
            self.tensors[weight.name] = tensor
            offset += weight.size
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copies the master weights to where the network reads them."""
        self.compute.copy_(self.master)

    def checkpoint(self, values: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """`values` (flat, like `master`) as the tensors of a checkpoint."""
        tensors = {}
        offset = 0
        for weight in self.weights:
            start = offset
            for name, shape in weight.parts:
                size = math.prod(shape)
                tensors[name] = values[start : start + size].view(shape).to("cpu", dtype).clone()
                start += size
            offset += weight.size
        return tensors

    def load_checkpoint(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `checkpoint`; weights that a checkpoint lacks keep their values."""
        offset = 0
        for weight in self.weights:
            start = offset
            for name, shape in weight.parts:
                size = math.prod(shape)
                self.master[start : start + size] = tensors[name].reshape(-1).to(self.master)
                start += size
            offset += weight.size
        self.publish()


def _norm(name: str, size: int) -> Weight:
    return Weight(f"{name}.weight", (size,), 0.0, ((f"{name}.weight", (size,)),), fill=1.0)


def _linear(
    name: str, rows: int, columns: int, gain: float = 1.0, checkpoint_shape: tuple[int, ...] | None = None
) -> Weight:
    parts = ((f"{name}.weight", checkpoint_shape or (rows, columns)),)
    return Weight(f"{name}.weight", (rows, columns), gain / math.sqrt(columns), parts)


def _biased(name: str, rows: int, columns: int, gain: float = 1.0) -> list[Weight]:
    return [_linear(name, rows, columns, gain), Weight(f"{name}.bias", (rows,), 0.0, ((f"{name}.bias", (rows,)),))]


def _fused(name: str, columns: int, parts: dict[str, int]) -> list[Weight]:
    """One matrix (and one bias) for several projections of the same input."""
    rows = sum(parts.values())
    matrices = tuple((f"{part}.weight", (size, columns)) for part, size in parts.items())
    biases = tuple((f"{part}.bias", (size,)) for part, size in parts.items())
    return [
        Weight(f"{name}.weight", (rows, columns), 1.0 / math.sqrt(columns), matrices),
        Weight(f"{name}.bias", (rows,), 0.0, biases),
    ]
