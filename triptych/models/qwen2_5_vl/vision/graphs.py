"""Small batches as captured CUDA graphs: launched one by one, 290 kernels keep a host busy for 6 to 12 ms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.kernels.vision_tiles import TILE_ROWS
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision.fused import FusedVisionTower
from triptych.models.qwen2_5_vl.vision.fused_layout import FusedLayout, layout_tables, max_window
from triptych.models.qwen2_5_vl.vision.order import PackedOrder
from triptych.models.qwen2_5_vl.vision.upload import upload_into

# Multiples of this, so that a batch is filled up by fewer patches than it saves launches.
BUCKET_PATCHES = 256
# A batch of more frames, or of windows that are smaller than this part of a whole one on average, has no graph: the
# tables would be too long for most.
MAX_FRAMES = 64
LEAST_WINDOW_PART = 4

# torch gives it no public name.
PoolHandle = Any
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Bucket:
    """One captured graph, and `tables`, which it reads beside the buffers that all share."""

    num_patches: int
    tables: Tensor
    graph: torch.cuda.CUDAGraph


@dataclass(frozen=True)
class Buffers:
    """What all graphs read and write, as one runs at a time: `patches` [max_patches, patch_dim], of which a bucket
    takes the first rows, and `embeddings` [max_cells, out_hidden_size]."""

    patches: Tensor
    embeddings: Tensor

    @classmethod
    def of(cls, tower: FusedVisionTower, max_patches: int) -> Buffers:
        config, like = tower.config, tower.weights.patch_embed
        max_cells = max_patches // config.spatial_merge_size**2
        return cls(like.new_zeros(max_patches, config.patch_dim), like.new_zeros(max_cells, config.out_hidden_size))


class VisionGraphs:
    """A tower's pass over batches of at most `max_patches` patches. Belongs to the tower's thread and stream."""

    def __init__(self, tower: FusedVisionTower, max_patches: int) -> None:
        self._tower = tower
        self._sizes = bucket_sizes(max_patches)
        self._buckets: list[Bucket] = []
        with torch.inference_mode():
            self._buffers = Buffers.of(tower, max(self._sizes, default=0))
        # The graphs read these, also when the tower's table has grown and left them.
        self._rotary = (tower.layouts.rotary.cos, tower.layouts.rotary.sin)

    @torch.inference_mode()
    def capture(self, progress: Progress) -> None:
        """Captures all buckets, the largest first: the others find room in its memory. `progress(done, all)`."""
        stream = torch.cuda.Stream(self._tower.device)  # type: ignore[no-untyped-call]
        pool = torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream(self._tower.device))
        for size in reversed(self._sizes):
            self._buckets.insert(0, _capture(self._tower, self._buffers, size, pool, stream))
            progress(len(self._buckets), len(self._sizes))
        torch.cuda.current_stream(self._tower.device).wait_stream(stream)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor | None:
        """Like the tower's `forward` for patches that are those of the grids; None for a batch that is not captured."""
        bucket = next((bucket for bucket in self._buckets if bucket.num_patches >= len(patches)), None)
        if bucket is None or max(max(grid.h, grid.w) for grid in grids) > len(self._rotary[0]):
            return None
        tables = padded_tables(self._tower.layouts.orders.packed(grids), bucket.num_patches, self._tower.config)
        if tables is None:
            return None
        upload_into(bucket.tables, tables)
        self._buffers.patches[: len(patches)].copy_(patches)
        self._buffers.patches[len(patches) : bucket.num_patches].zero_()
        bucket.graph.replay()
        num_cells = len(patches) // self._tower.config.spatial_merge_size**2
        return self._buffers.embeddings[:num_cells].clone()


def bucket_sizes(max_patches: int) -> list[int]:
    """Half a bucket for thumbnails, then whole ones."""
    smallest = [BUCKET_PATCHES // 2] if max_patches >= BUCKET_PATCHES // 2 else []
    return smallest + list(range(BUCKET_PATCHES, max_patches + 1, BUCKET_PATCHES))


def table_sizes(num_patches: int, config: VisionConfig) -> list[tuple[int, ...]]:
    """Shapes of `layout_tables` in a bucket; tiles are as many as MAX_FRAMES frames can have."""
    num_cells = num_patches // config.spatial_merge_size**2
    num_windows = LEAST_WINDOW_PART * num_patches // max_window(config)
    num_tiles = num_patches // TILE_ROWS + MAX_FRAMES
    return [(num_cells,), (num_cells,), (num_patches, 2), (num_windows + 1,), (MAX_FRAMES + 1,), (num_tiles, 3)]


def padded_tables(order: PackedOrder, num_patches: int, config: VisionConfig) -> np.ndarray | None:
    """The tables of a batch filled up to a bucket, one after the other, int32; None when the bucket has no room.

    Patches of the filling are windows and a frame of their own, so that every row is computed from finite values.
    """
    missing = num_patches - len(order.positions)
    window = max_window(config)
    filling = [window] * (missing // window) + [missing % window] * (missing % window > 0)
    num_cells, cell_size = len(order.window_order), config.spatial_merge_size**2
    more_cells = np.arange(num_cells, num_cells + missing // cell_size)
    filled = PackedOrder(
        np.concatenate((order.window_order, more_cells)),
        np.concatenate((order.original_order, more_cells)),
        np.concatenate((order.positions, np.zeros((missing, 2), dtype=np.int64))),
        np.concatenate((order.window_lengths, np.array(filling, dtype=np.int64))),
        np.concatenate((order.frame_lengths, np.array([missing] if missing else [], dtype=np.int64))),
    )
    sizes = table_sizes(num_patches, config)
    if len(filled.window_lengths) >= sizes[3][0] or len(filled.frame_lengths) >= sizes[4][0]:
        return None
    padded = []
    # What is left of the starts of segments is empty segments at the end; of the tiles, tiles of none.
    for table, shape, value in zip(layout_tables(filled), sizes, (0, 0, 0, num_patches, num_patches, 0), strict=True):
        whole = np.full(shape, value, dtype=np.int32)
        whole[: len(table)] = table
        padded.append(whole.reshape(-1))
    return np.concatenate(padded)


def _capture(
    tower: FusedVisionTower, buffers: Buffers, num_patches: int, pool: PoolHandle, stream: torch.cuda.Stream
) -> Bucket:
    config, device = tower.config, tower.device
    sizes = table_sizes(num_patches, config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        tables = torch.zeros(sum(int(np.prod(size)) for size in sizes), dtype=torch.int32, device=device)
        # Once outside of the capture, over a batch that is filling alone: kernels are compiled and loaded.
        none = np.zeros(0, dtype=np.int64)
        empty = padded_tables(PackedOrder(none, none, none.reshape(0, 2), none, none), num_patches, config)
        assert empty is not None
        upload_into(tables, empty)
        _pass(tower, buffers, tables, sizes)
        stream.synchronize()
        # Other threads may use the device meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            _pass(tower, buffers, tables, sizes)
        finally:
            graph.capture_end()
    return Bucket(num_patches, tables, graph)


def _pass(tower: FusedVisionTower, buffers: Buffers, tables: Tensor, sizes: list[tuple[int, ...]]) -> None:
    parts = torch.split(tables, [int(np.prod(size)) for size in sizes])
    window_order, original_order, positions, windows, frames, tiles = (
        part.view(size) for part, size in zip(parts, sizes, strict=True)
    )
    cos, sin = tower.layouts.rotary.cos_sin(positions)
    layout = FusedLayout(
        window_order, original_order, cos, sin, windows, frames, tiles, tower.layouts.max_window, (), ()
    )
    embeddings = tower.compute(buffers.patches[: len(positions)], layout)
    buffers.embeddings[: len(embeddings)].copy_(embeddings)
