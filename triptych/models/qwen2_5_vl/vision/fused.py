"""The vision tower on fused kernels: the same weights and results, fewer passes over memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision.fused_layout import FusedLayout, FusedLayoutCache
from triptych.models.qwen2_5_vl.vision.fused_weights import FusedWeights, Linear, padded_width
from triptych.models.qwen2_5_vl.vision.operations import VisionOperations
from triptych.models.qwen2_5_vl.vision.tower import VisionTower, check_patches

# Layouts of so many patches in all stay on the device: with a head size of 80 they take 42 MiB.
MAX_CACHED_PATCHES = 128 * 1024


@dataclass(frozen=True)
class Workspace:
    """Intermediate results of a pass over T patches; each is overwritten when it has been read.

    residual, normed: [T, hidden]. wide: flat, holds the patches in window order, then qkv, gate_up and the merger's
    hidden states. middle: flat, holds the attention's result and the activations.
    """

    residual: Tensor
    normed: Tensor
    wide: Tensor
    middle: Tensor

    @classmethod
    def of(cls, num_patches: int, config: VisionConfig, like: Tensor) -> "Workspace":
        return cls(
            like.new_empty(num_patches, config.hidden_size),
            like.new_empty(num_patches, config.hidden_size),
            like.new_empty(num_patches * _wide_size(config)),
            like.new_empty(num_patches * max(padded_width(config), config.hidden_size)),
        )


class FusedVisionTower:
    """A VisionTower's weights behind its `forward`. Takes the tower apart: see FusedWeights.of.

    Nothing is read or waited for on the host.
    """

    def __init__(self, tower: VisionTower, operations: VisionOperations) -> None:
        self.config = tower.config
        self.weights = FusedWeights.of(tower)
        self.layouts = FusedLayoutCache(self.config, self.device, MAX_CACHED_PATCHES)
        self._operations = operations
        self._eps = self.config.rms_norm_eps

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.patch_embed.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.patch_embed.device

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Patches [num_patches, patch_dim] of all `grids` in turn to [num_patches / merge^2, out_hidden_size].

        Raises ModelError when the patches are not those of the grids.
        """
        check_patches(patches, grids, self.config)
        return self.compute(patches.to(self.dtype), self.layouts.packed(grids))

    def compute(self, patches: Tensor, layout: FusedLayout) -> Tensor:
        """The same for patches in the tower's dtype whose layout is at hand."""
        operations, config, blocks = self._operations, self.config, self.weights.blocks
        num_patches, hidden = len(patches), config.hidden_size
        space = Workspace.of(num_patches, config, self.weights.patch_embed)
        residual, normed = space.residual, space.normed
        attended = _part(space.middle, num_patches, hidden)
        activated = _part(space.middle, num_patches, self.weights.width)
        qkv = _part(space.wide, num_patches, 3 * hidden)
        gate_up = _part(space.wide, num_patches, 2 * self.weights.width)

        self._embed(patches, layout, space)
        operations.norm(residual, blocks[0].first_norm, self._eps, normed)
        next_norms = [*(block.first_norm for block in blocks[1:]), self.weights.merger_norm]
        for index, (block, next_norm) in enumerate(zip(blocks, next_norms, strict=True)):
            _linear(normed, block.qkv, qkv)
            is_full = index in config.fullatt_block_indexes
            attend = operations.full_attention if is_full else operations.window_attention
            attend(qkv, layout, config.head_dim, attended)
            _linear(attended, block.output, normed)
            operations.add_norm(normed, residual, block.second_norm, self._eps, normed)
            _linear(normed, block.gate_up, gate_up)
            operations.silu_and_mul(gate_up, activated)
            _linear(activated, block.down, normed)
            operations.add_norm(normed, residual, next_norm, self._eps, normed)
        return self._merge(normed, space).index_select(0, layout.original_order)

    def activation_bytes(self, num_patches: int) -> int:
        return activation_bytes(self.config, num_patches, self.dtype)

    def _embed(self, patches: Tensor, layout: FusedLayout, space: Workspace) -> None:
        """Cells into window order, once for all blocks, and embedded."""
        config = self.config
        cells = patches.view(-1, config.spatial_merge_size**2 * config.patch_dim)
        ordered = _part(space.wide, *cells.shape)
        torch.index_select(cells, 0, layout.window_order, out=ordered)
        torch.mm(ordered.view(-1, config.patch_dim), self.weights.patch_embed.t(), out=space.residual)

    def _merge(self, normed: Tensor, space: Workspace) -> Tensor:
        first, second = self.weights.merger
        cells = normed.view(-1, first.weight.shape[1])
        merged = _part(space.wide, *cells.shape)
        _linear(cells, first, merged)
        return F.linear(F.gelu(merged), second.weight, second.bias)


def activation_bytes(config: VisionConfig, num_patches: int, dtype: torch.dtype) -> int:
    """Device memory that a pass of the fused tower takes beside the weights: the patches and the embeddings too."""
    merged = config.out_hidden_size / config.spatial_merge_size**2
    elements = (
        2 * config.hidden_size  # residual, normed
        + _wide_size(config)
        + max(padded_width(config), config.hidden_size)
        + config.hidden_size  # the merger's activations
        + config.patch_dim
        + 2 * merged  # in window order and in the original one
    )
    table_bytes = config.head_dim * torch.float32.itemsize + 4 * torch.int32.itemsize
    return int(num_patches * (elements * dtype.itemsize + table_bytes))


def _wide_size(config: VisionConfig) -> int:
    return max(3 * config.hidden_size, 2 * padded_width(config), config.patch_dim)


def _part(flat: Tensor, rows: int, columns: int) -> Tensor:
    return flat[: rows * columns].view(rows, columns)


def _linear(states: Tensor, linear: Linear, out: Tensor) -> None:
    torch.addmm(linear.bias, states, linear.weight.t(), out=out)
