"""A tower's weights as its fused form wants them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.kernels.vision_reference import interleaved_pairs
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.vision.tower import VisionBlock, VisionTower

# The MLP's width is filled up with zeros to a multiple of this: rows start at whole tiles of the matrix products, and
# 3,420 becomes 3,456.
_WIDTH_MULTIPLE = 64


@dataclass(frozen=True)
class Linear:
    """`weight` [outputs, inputs], `bias` [outputs]."""

    weight: Tensor
    bias: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [self.weight, self.bias]


@dataclass(frozen=True)
class FusedBlock:
    """`qkv`: query and key heads with interleaved pairs. `gate_up`, `down`: of the padded width."""

    first_norm: Tensor
    qkv: Linear
    output: Linear
    second_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class FusedWeights:
    """`patch_embed` [hidden, patch_dim]. `merger_norm` and the two linears of the merger are the tower's own."""

    patch_embed: Tensor
    blocks: tuple[FusedBlock, ...]
    merger_norm: Tensor
    merger: tuple[Linear, Linear]

    @classmethod
    def of(cls, tower: VisionTower) -> "FusedWeights":
        """Shares with `tower` what needs no change. What needs one is taken out of the tower as it is converted, so
        that no more than one block is held twice: the tower can't be used afterwards."""
        mlp = tower.merger.mlp
        return cls(
            tower.patch_embed.proj.weight,
            tuple(_block(block, tower.config) for block in tower.blocks if isinstance(block, VisionBlock)),
            tower.merger.ln_q.weight,
            (_linear(mlp[0]), _linear(mlp[2])),
        )

    @property
    def tensors(self) -> list[Tensor]:
        found = [self.patch_embed, self.merger_norm]
        for block in self.blocks:
            found += [block.first_norm, block.second_norm]
            for linear in (block.qkv, block.output, block.gate_up, block.down):
                found += linear.tensors
        for linear in self.merger:
            found += linear.tensors
        return found

    @property
    def width(self) -> int:
        """The MLP's padded width."""
        return self.blocks[0].down.weight.shape[1]


def padded_width(config: VisionConfig) -> int:
    return -(-config.intermediate_size // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE


def _block(block: VisionBlock, config: VisionConfig) -> FusedBlock:
    fused = FusedBlock(
        block.norm1.weight,
        _interleaved(_linear(block.attn.qkv), config),
        _linear(block.attn.proj),
        block.norm2.weight,
        _padded_gate_up(_linear(block.mlp.gate_up_proj), config),
        _padded_down(_linear(block.mlp.down_proj), config),
    )
    for linear in (block.attn.qkv, block.mlp.gate_up_proj, block.mlp.down_proj):
        linear.weight.data = linear.weight.data.new_empty(0)
    return fused


def _linear(linear: torch.nn.Module) -> Linear:
    assert isinstance(linear, torch.nn.Linear)
    return Linear(linear.weight, linear.bias)


def _interleaved(qkv: Linear, config: VisionConfig) -> Linear:
    """Query and key rows of each head in the order that rotation wants; rows of values stay."""
    order = interleaved_pairs(config.head_dim, qkv.weight.device)
    first_rows = torch.arange(0, 2 * config.hidden_size, config.head_dim, device=order.device)
    rows = torch.arange(3 * config.hidden_size, device=order.device)
    rows[: 2 * config.hidden_size] = (first_rows[:, None] + order).view(-1)
    return Linear(qkv.weight[rows], qkv.bias[rows])


def _padded_gate_up(gate_up: Linear, config: VisionConfig) -> Linear:
    """Rows of zeros after the gates and after the ups: silu(0) * 0 is 0."""
    padding = padded_width(config) - config.intermediate_size
    halves = [config.intermediate_size, config.intermediate_size]
    return Linear(
        torch.cat([F.pad(half, (0, 0, 0, padding)) for half in torch.split(gate_up.weight, halves)]),
        torch.cat([F.pad(half, (0, padding)) for half in torch.split(gate_up.bias, halves)]),
    )


def _padded_down(down: Linear, config: VisionConfig) -> Linear:
    padding = padded_width(config) - config.intermediate_size
    return Linear(F.pad(down.weight, (0, padding)).contiguous(), down.bias)
