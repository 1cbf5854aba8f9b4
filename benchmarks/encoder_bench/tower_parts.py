"""Where the tower's time goes: every operation of one layer, and the choices of attention for windows and frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernel_bench.timing import median, time_in_graph
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision.fused import FusedVisionTower
from triptych.models.qwen2_5_vl.vision.fused_layout import FusedLayout

BATCHES = {"1 x 720p": [Grid(1, 52, 92)], "8 x 1080p": [Grid(1, 78, 138)] * 8}


def measure_layer(tower: FusedVisionTower) -> dict[str, Any]:
    """Microseconds of each operation of a layer."""
    return {name: _layer(tower, grids) for name, grids in BATCHES.items()}


def measure_windows(tower: FusedVisionTower) -> dict[str, Any]:
    """Microseconds of window attention with its rotation, by how it is computed."""
    return {name: _windows(tower, tower.layouts.packed(grids)) for name, grids in BATCHES.items()}


def measure_frames(tower: FusedVisionTower) -> dict[str, Any]:
    """Microseconds of attention over frames without its rotation, by how it is computed; cuDNN's first calls, too."""
    results: dict[str, Any] = {name: _frames(tower, tower.layouts.packed(grids)) for name, grids in BATCHES.items()}
    qkv, _ = _qkv_and_out(tower, tower.layouts.packed(BATCHES["8 x 1080p"]))
    # Each new length is a plan of its own.
    results["cuDNN, first call for a length"] = {
        str(length): _first_call(partial(_cudnn, qkv[:length], 1, tower.config.head_dim))
        for length in (3_000, 3_004, 5_128)
    }
    return results


PARTS: Mapping[str, Callable[[FusedVisionTower], dict[str, Any]]] = MappingProxyType(
    {"layer_us": measure_layer, "window_attention_us": measure_windows, "full_attention_us": measure_frames}
)


def _layer(tower: FusedVisionTower, grids: Sequence[Grid]) -> dict[str, float]:
    block, operations, config = tower.weights.blocks[0], tower._operations, tower.config
    layout = tower.layouts.packed(grids)
    qkv, attended = _qkv_and_out(tower, layout)
    residual, normed = attended.clone(), attended.clone()
    gate_up = qkv.new_empty(len(qkv), 2 * tower.weights.width).normal_()
    activated = qkv.new_empty(len(qkv), tower.weights.width).normal_()
    steps: dict[str, Callable[[], object]] = {
        "add_norm": lambda: operations.add_norm(normed, residual, block.first_norm, 1e-6, attended),
        "qkv": lambda: torch.addmm(block.qkv.bias, normed, block.qkv.weight.t(), out=qkv),
        "window attention": lambda: operations.window_attention(qkv, layout, config.head_dim, attended),
        "full attention": lambda: operations.full_attention(qkv, layout, config.head_dim, attended),
        "output": lambda: torch.addmm(block.output.bias, attended, block.output.weight.t(), out=normed),
        "gate_up": lambda: torch.addmm(block.gate_up.bias, normed, block.gate_up.weight.t(), out=gate_up),
        "silu_and_mul": lambda: operations.silu_and_mul(gate_up, activated),
        "down": lambda: torch.addmm(block.down.bias, activated, block.down.weight.t(), out=normed),
    }
    return {name: _time(step) for name, step in steps.items()}


def _windows(tower: FusedVisionTower, layout: FusedLayout) -> dict[str, float]:
    from triptych.kernels.vision_rotary import rotate_query_and_key
    from triptych.kernels.vision_window_attention import WindowTiling, window_attention

    head_dim = tower.config.head_dim
    qkv, out = _qkv_and_out(tower, layout)
    shapes = [(1, 4, 1), (2, 4, 2), (4, 4, 2), (4, 4, 3), (8, 4, 2), (16, 4, 2)]
    tilings = [WindowTiling(*shape) for shape in shapes]
    attend = partial(
        window_attention, qkv, layout.cos, layout.sin, layout.windows, layout.max_window, head_dim, out=out
    )
    times = {str(tiling): _time(partial(attend, tiling=tiling)) for tiling in tilings}
    times["rotation alone"] = _time(lambda: rotate_query_and_key(qkv, layout.cos, layout.sin, head_dim))
    times["FA2 varlen, without rotation"] = _time(lambda: _varlen(qkv, layout.windows, layout.max_window, head_dim))
    return times


def _frames(tower: FusedVisionTower, layout: FusedLayout) -> dict[str, float]:
    from triptych.kernels.vision_full_attention import FullTiling, full_attention

    head_dim, num_frames = tower.config.head_dim, len(layout.frame_lengths)
    qkv, out = _qkv_and_out(tower, layout)
    shapes = [(64, 4, 2), (64, 4, 3), (64, 8, 2), (64, 8, 3), (128, 8, 2)]
    tilings = [FullTiling(*shape, is_peeled=is_peeled) for shape in shapes for is_peeled in (False, True)]
    times = {
        str(tiling): _time(partial(full_attention, qkv, layout.tiles, head_dim, out=out, tiling=tiling))
        for tiling in tilings
    }
    times["FA2 varlen"] = _time(lambda: _varlen(qkv, layout.frames, max(layout.frame_lengths), head_dim))
    times["cuDNN, first call"] = _first_call(lambda: _cudnn(qkv, num_frames, head_dim))
    times["cuDNN"] = _time(lambda: _cudnn(qkv, num_frames, head_dim))
    return times


def _qkv_and_out(tower: FusedVisionTower, layout: FusedLayout) -> tuple[Tensor, Tensor]:
    rows, hidden = len(layout.cos), tower.config.hidden_size
    qkv = torch.randn(rows, 3 * hidden, device=tower.device, dtype=tower.dtype)
    return qkv, torch.randn(rows, hidden, device=tower.device, dtype=tower.dtype)


def _heads(qkv: Tensor, head_dim: int) -> Sequence[Tensor]:
    return qkv.view(len(qkv), 3, -1, head_dim).unbind(1)


def _varlen(qkv: Tensor, cu_seqlens: Tensor, longest: int, head_dim: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = _heads(qkv, head_dim)
    output = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, longest, longest)
    assert isinstance(output, Tensor)
    return output


def _cudnn(qkv: Tensor, num_frames: int, head_dim: int) -> Tensor:
    """Frames of equal length as one batch."""
    query, key, value = (
        states.view(num_frames, -1, *states.shape[1:]).transpose(1, 2) for states in _heads(qkv, head_dim)
    )
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _time(call: Callable[[], object]) -> float:
    return median(time_in_graph([call] * 2, rounds=6))


def _first_call(call: Callable[[], object]) -> float:
    """Microseconds of the host's clock."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e6
