"""What the fused tower is made of besides matrix products, and its plain-torch version."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.kernels.vision_reference import rotate_query_and_key_reference, segment_attention_reference
from triptych.models.qwen2_5_vl.vision.fused_layout import FusedLayout


class VisionOperations(Protocol):
    """Every call writes `out` and reads nothing on the host, so that it can be captured in a CUDA graph."""

    def norm(self, states: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """RMSNorm of `states` [T, hidden]."""
        ...

    def add_norm(self, states: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """`residual` [T, hidden] becomes residual + states, `out` its RMSNorm."""
        ...

    def silu_and_mul(self, gate_up: Tensor, out: Tensor) -> None:
        """`gate_up` [T, 2 * intermediate], gates first, to `out` [T, intermediate]."""
        ...

    def window_attention(self, qkv: Tensor, layout: FusedLayout, head_dim: int, out: Tensor) -> None:
        """Rotates query and key of `qkv` [T, 3 * hidden], whose heads have interleaved pairs, and attends inside each
        window, to `out` [T, hidden]. `qkv` may be overwritten."""
        ...

    def full_attention(self, qkv: Tensor, layout: FusedLayout, head_dim: int, out: Tensor) -> None:
        """The same inside each frame."""
        ...


class TorchVisionOperations:
    """Plain torch, on any device: what the kernels are compared with."""

    def norm(self, states: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        wide = states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        out.copy_(weight * normed.to(states.dtype))

    def add_norm(self, states: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        residual += states
        self.norm(residual, weight, eps, out)

    def silu_and_mul(self, gate_up: Tensor, out: Tensor) -> None:
        gate, up = gate_up.chunk(2, dim=-1)
        torch.mul(F.silu(gate), up, out=out)

    def window_attention(self, qkv: Tensor, layout: FusedLayout, head_dim: int, out: Tensor) -> None:
        self._attend(qkv, layout, layout.window_lengths, head_dim, out)

    def full_attention(self, qkv: Tensor, layout: FusedLayout, head_dim: int, out: Tensor) -> None:
        self._attend(qkv, layout, layout.frame_lengths, head_dim, out)

    def _attend(self, qkv: Tensor, layout: FusedLayout, lengths: tuple[int, ...], head_dim: int, out: Tensor) -> None:
        rotated = rotate_query_and_key_reference(qkv, layout.cos, layout.sin, head_dim)
        out.copy_(segment_attention_reference(rotated, lengths, head_dim))
