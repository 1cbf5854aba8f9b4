"""The vision tower: flattened patches of many pictures and videos in, embeddings for the language model out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.layers import GatedMLP, RMSNorm
from triptych.models.qwen2_5_vl.rope import apply_rotary, full_width
from triptych.models.qwen2_5_vl.vision.attention import SegmentedAttention, VisionAttention
from triptych.models.qwen2_5_vl.vision.layout import LayoutCache
from triptych.models.qwen2_5_vl.vision.segments import Segments

# 64 Ki patches are one picture of 3584 x 3584 px; with a head size of 80 their tables take 20 MiB.
MAX_CACHED_PATCHES = 64 * 1024


class VisionTower(nn.Module):
    """Encodes packed pictures and videos; what shares a pass does not change an embedding."""

    def __init__(self, config: VisionConfig, attention: VisionAttention | None = None) -> None:
        super().__init__()
        self.config = config
        self.attention = attention or SegmentedAttention()
        self.layouts = LayoutCache(config, MAX_CACHED_PATCHES)
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Patches [num_patches, patch_dim] of all `grids` in turn to [num_patches / merge^2, out_hidden_size].

        Patches are in the order of `processing`: cells of merge x merge patches, row by row, frame by frame.
        Raises ModelError when the patches are not those of the grids.
        """
        check_patches(patches, grids, self.config)
        cell_size = self.config.spatial_merge_size**2
        layout = self.layouts.packed(grids, patches.device)
        cos, sin = full_width(layout.cos, layout.sin)
        hidden = self.patch_embed(patches)
        hidden = hidden.unflatten(0, (-1, cell_size))[layout.window_order].flatten(0, 1)
        for index, block in enumerate(self.blocks):
            segments = layout.frames if index in self.config.fullatt_block_indexes else layout.windows
            hidden = block(hidden, cos, sin, segments, self.attention)
        embeddings: Tensor = self.merger(hidden)[layout.original_order]
        return embeddings


def check_patches(patches: Tensor, grids: Sequence[Grid], config: VisionConfig) -> None:
    """Raises ModelError when the patches are not those of the grids."""
    expected = (sum(grid.num_patches for grid in grids), config.patch_dim)
    if not grids or tuple(patches.shape) != expected:
        raise ModelError(f"patches have the shape {tuple(patches.shape)}, expected {expected} for {list(grids)}")
    merge = config.spatial_merge_size
    for grid in grids:
        if min(grid.t, grid.h, grid.w) < 1 or grid.h % merge or grid.w % merge:
            raise ModelError(f"{grid} has a side that is no positive multiple of the merge size {merge}")


def activation_bytes(config: VisionConfig, num_patches: int, dtype: torch.dtype) -> int:
    """Memory that a pass of the plain tower takes beside the weights, the patches included: at its widest, in the MLP,
    or in the attention, where query and key are rotated in float32."""
    mlp = config.hidden_size * 2 + config.intermediate_size * 5
    attention = config.hidden_size * 8
    wide_bytes = config.hidden_size * 4 * torch.float32.itemsize
    table_bytes = 3 * config.head_dim * torch.float32.itemsize + 4 * torch.int64.itemsize
    per_patch = (config.patch_dim + max(mlp, attention)) * dtype.itemsize + wide_bytes + table_bytes
    return num_patches * per_patch


class PatchEmbed(nn.Module):
    """The convolution over whole patches, as the one linear that it is."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.patch_dim, config.hidden_size, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight)


class VisionBlock(nn.Module):
    """Norm, self-attention, norm, MLP, each pair with a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = VisionSelfAttention(config)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=True)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, segments: Segments, attention: VisionAttention
    ) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), cos, sin, segments, attention)
        output: Tensor = hidden + self.mlp(self.norm2(hidden))
        return output


class VisionSelfAttention(nn.Module):
    """Query, key and value in one linear, rotation, the tower's attention, output projection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, segments: Segments, attention: VisionAttention
    ) -> Tensor:
        heads: Tensor = self.qkv(hidden).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = heads.unbind(1)
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        output: Tensor = self.proj(attention(query, key, value, segments).flatten(1))
        return output


class PatchMerger(nn.Module):
    """Joins each cell of merge x merge patches into one embedding of the language model's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merged_size = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged_size, self.merged_size),
            nn.GELU(),
            nn.Linear(self.merged_size, config.out_hidden_size),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        embeddings: Tensor = self.mlp(self.ln_q(hidden).view(-1, self.merged_size))
        return embeddings
