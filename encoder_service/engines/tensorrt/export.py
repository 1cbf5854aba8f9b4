"""The vision tower of a checkpoint as an ONNX graph whose sizes are all dynamic.

The graph is written out operator by operator: it says what the tower computes, does not depend on how the torch tower
is put together or on torch's exporter, and has no mask of patches x patches. Attention runs over padded segments:
tables that come with each call (`tables.py`) gather the patches of each window, or of each frame, into one row of a
batch, and bring the results back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from encoder_service.engines.tensorrt.graph import OnnxGraph
from encoder_service.engines.tensorrt.shapes import tower_weight_shapes
from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.checkpoint import listed
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.fp8_checkpoint import StoredTensor

GRAPH_NAME = "vision_tower.onnx"
WEIGHTS_NAME = "vision_tower.weights"
OUTPUT = "embeddings"


def export_vision_tower(
    config: VisionConfig, tensors: Mapping[str, StoredTensor], precision: torch.dtype, folder: Path
) -> Path:
    """Writes the graph and its weights, in `precision`, into `folder`, and returns the graph's path.

    `tensors` are the checkpoint's `visual.*` by their published names without that prefix; each is read once.
    Norms and rotation are computed in float32 whatever the precision. Raises ModelError for unfit tensors.
    """
    _check(config, tensors)
    path = folder / GRAPH_NAME
    with OnnxGraph(folder / WEIGHTS_NAME) as graph:
        _Tower(config, tensors, precision, graph).build()
        graph.save(path, "qwen2_5_vl_vision_tower", "triptych")
    return path


def _check(config: VisionConfig, tensors: Mapping[str, StoredTensor]) -> None:
    expected = tower_weight_shapes(config)
    missing = sorted(expected.keys() - tensors.keys())
    # As in loading: old tools saved the rotary frequencies.
    unexpected = sorted(name for name in tensors.keys() - expected.keys() if not name.endswith(".inv_freq"))
    misshapen = sorted(
        f"{name} {list(tensors[name].shape)} (expected {list(shape)})"
        for name, shape in expected.items()
        if name in tensors and torch.Size(tensors[name].shape).numel() != torch.Size(shape).numel()
    )
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    found = [f"{what}: {listed(names)}" for what, names in problems if names]
    if found:
        raise ModelError(f"the checkpoint's visual.* tensors do not fit config.json; {'; '.join(found)}")


@dataclass(frozen=True)
class _Segments:
    """Inputs of one kind of segment: `rows` and `bias` [segments, length], `slots` [num_patches]."""

    rows: str
    bias: str
    slots: str


class _Tower:
    """Writes one graph. Hidden states are [num_patches, hidden_size] throughout, in window order."""

    def __init__(
        self, config: VisionConfig, tensors: Mapping[str, StoredTensor], precision: torch.dtype, graph: OnnxGraph
    ) -> None:
        self.config = config
        self.tensors = tensors
        self.precision = precision
        self.graph = graph

    def build(self) -> None:
        config, graph = self.config, self.graph
        cell_width = config.spatial_merge_size**2 * config.hidden_size
        patches = graph.input("patches", self.precision, ("num_patches", config.patch_dim))
        window_order = graph.input("window_order", torch.int32, ("num_cells",))
        original_order = graph.input("original_order", torch.int32, ("num_cells",))
        self.cos, self.sin = (
            graph.node("Unsqueeze", [self._rotary_input(name), graph.integers("axis_1", [1])], f"{name}_of_heads")
            for name in ("cos", "sin")
        )
        windows = self._segments("window", "num_windows", "window_length")
        frames = self._segments("frame", "num_frames", "frame_length")

        hidden = self._linear(patches, "patch_embed.proj", has_bias=False)
        cells = graph.reshape(hidden, (-1, cell_width), "cells")
        cells = graph.node("Gather", [cells, window_order], "cells_in_window_order", axis=0)
        hidden = graph.reshape(cells, (-1, config.hidden_size), "hidden")
        for index in range(config.depth):
            segments = frames if index in config.fullatt_block_indexes else windows
            hidden = self._block(hidden, f"blocks.{index}", segments)
        merged = self._merger(hidden, cell_width)
        graph.node("Gather", [merged, original_order], OUTPUT, axis=0)
        graph.output(OUTPUT, self.precision, ("num_cells", config.out_hidden_size))

    def _rotary_input(self, name: str) -> str:
        return self.graph.input(name, torch.float32, ("num_patches", self.config.head_dim // 2))

    def _segments(self, kind: str, count: str, length: str) -> _Segments:
        graph = self.graph
        rows = graph.input(f"{kind}_rows", torch.int32, (count, length))
        bias = graph.input(f"{kind}_bias", self.precision, (count, length))
        slots = graph.input(f"{kind}_slots", torch.int32, ("num_patches",))
        # [segments, 1, 1, length]: the same for every head and every query.
        of_scores = graph.node("Unsqueeze", [bias, graph.integers("axes_1_2", [1, 2])], f"{kind}_bias_of_scores")
        return _Segments(rows, of_scores, slots)

    def _block(self, hidden: str, name: str, segments: _Segments) -> str:
        graph = self.graph
        attended = self._attention(self._norm(hidden, f"{name}.norm1"), f"{name}.attn", segments)
        hidden = graph.node("Add", [hidden, attended], f"{name}.attn.residual")
        normed = self._norm(hidden, f"{name}.norm2")
        gate = self._linear(normed, f"{name}.mlp.gate_proj")
        gate = graph.node("Mul", [gate, graph.node("Sigmoid", [gate], f"{gate}.sigmoid")], f"{name}.mlp.silu")
        gated = graph.node("Mul", [gate, self._linear(normed, f"{name}.mlp.up_proj")], f"{name}.mlp.gated")
        return graph.node("Add", [hidden, self._linear(gated, f"{name}.mlp.down_proj")], f"{name}.mlp.residual")

    def _attention(self, normed: str, name: str, segments: _Segments) -> str:
        graph, config = self.graph, self.config
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        projected = graph.split(self._linear(normed, f"{name}.qkv"), [config.hidden_size] * 3, 1, parts)
        query, key, value = (
            graph.reshape(part, (-1, config.num_heads, config.head_dim), f"{part}.heads") for part in projected
        )
        # Queries are scaled in float32, before they are rounded.
        query = self._rotated(query, config.head_dim**-0.5)
        # [segments, num_heads, length, head_dim], keys with the last two exchanged.
        query = self._gathered(query, segments, (0, 2, 1, 3))
        key = self._gathered(self._rotated(key), segments, (0, 2, 3, 1))
        value = self._gathered(value, segments, (0, 2, 1, 3))
        scores = graph.node("MatMul", [query, key], f"{name}.scores")
        scores = graph.node("Add", [scores, segments.bias], f"{name}.masked_scores")
        weights = graph.node("Softmax", [scores], f"{name}.softmax", axis=-1)
        context = graph.node("MatMul", [weights, value], f"{name}.context")
        context = graph.node("Transpose", [context], f"{name}.context_by_slot", perm=(0, 2, 1, 3))
        context = graph.reshape(context, (-1, config.hidden_size), f"{name}.slots")
        context = graph.node("Gather", [context, segments.slots], f"{name}.patches", axis=0)
        return self._linear(context, f"{name}.proj")

    def _rotated(self, heads: str, scale: float = 1.0) -> str:
        """Value i of a head is paired with value i + head_dim / 2."""
        graph, half = self.graph, self.config.head_dim // 2
        wide = graph.cast(heads, torch.float32, f"{heads}.float32")
        if scale != 1.0:
            wide = graph.node("Mul", [wide, graph.scalar("attention_scale", scale, torch.float32)], f"{heads}.scaled")
        first, second = graph.split(wide, (half, half), 2, (f"{heads}.first", f"{heads}.second"))
        products = {
            f"{side}_{axis}": graph.node("Mul", [part, table], f"{heads}.{side}_{axis}")
            for side, part in (("first", first), ("second", second))
            for axis, table in (("cos", self.cos), ("sin", self.sin))
        }
        turned_first = graph.node("Sub", [products["first_cos"], products["second_sin"]], f"{heads}.turned_first")
        turned_second = graph.node("Add", [products["second_cos"], products["first_sin"]], f"{heads}.turned_second")
        turned = graph.node("Concat", [turned_first, turned_second], f"{heads}.turned", axis=2)
        return graph.cast(turned, self.precision, f"{heads}.rotated")

    def _gathered(self, heads: str, segments: _Segments, order: tuple[int, int, int, int]) -> str:
        gathered = self.graph.node("Gather", [heads, segments.rows], f"{heads}.by_segment", axis=0)
        return self.graph.node("Transpose", [gathered], f"{heads}.batched", perm=order)

    def _merger(self, hidden: str, cell_width: int) -> str:
        graph = self.graph
        normed = self._norm(hidden, "merger.ln_q")
        inner = self._linear(graph.reshape(normed, (-1, cell_width), "merger.cells"), "merger.mlp.0")
        scaled = graph.node("Mul", [inner, graph.scalar("inverse_root_2", 2**-0.5, self.precision)], "merger.scaled")
        erf = graph.node("Erf", [scaled], "merger.erf")
        erf = graph.node("Add", [erf, graph.scalar("one", 1.0, self.precision)], "merger.erf_plus_1")
        halved = graph.node("Mul", [inner, graph.scalar("half", 0.5, self.precision)], "merger.halved")
        return self._linear(graph.node("Mul", [halved, erf], "merger.gelu"), "merger.mlp.2")

    def _norm(self, states: str, name: str) -> str:
        """Root mean square norm in float32; the learned scale in the graph's precision, as in the torch tower."""
        graph = self.graph
        wide = graph.cast(states, torch.float32, f"{name}.float32")
        square = graph.node("Mul", [wide, wide], f"{name}.square")
        mean = graph.node("ReduceMean", [square, graph.integers("last_axis", [-1])], f"{name}.mean", keepdims=1)
        epsilon = graph.scalar("norm_epsilon", self.config.rms_norm_eps, torch.float32)
        root = graph.node("Sqrt", [graph.node("Add", [mean, epsilon], f"{name}.variance")], f"{name}.root")
        normed = graph.cast(graph.node("Div", [wide, root], f"{name}.normed"), self.precision, f"{name}.narrow")
        return graph.node("Mul", [normed, self._weight(f"{name}.weight")], f"{name}.scaled")

    def _linear(self, states: str, name: str, has_bias: bool = True) -> str:
        inputs = [states, self._weight(f"{name}.weight")]
        if has_bias:
            inputs.append(self._weight(f"{name}.bias"))
        return self.graph.node("Gemm", inputs, f"{name}.linear", transB=1)

    def _weight(self, name: str) -> str:
        values: Tensor = self.tensors[name].read().to(self.precision)
        # The patch embedding is stored as a convolution over whole patches.
        return self.graph.weight(name, values.flatten(1) if values.ndim > 2 else values)
