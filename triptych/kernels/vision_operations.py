"""The fused tower's operations as Triton kernels."""

from torch import Tensor

from triptych.kernels.activation import silu_and_mul
from triptych.kernels.norm import fused_add_rms_norm, rms_norm
from triptych.kernels.vision_full_attention import FullTiling, full_attention
from triptych.kernels.vision_rotary import rotate_query_and_key
from triptych.kernels.vision_window_attention import WindowTiling, window_attention
from triptych.models.qwen2_5_vl.vision.fused_layout import FusedLayout


class TritonVisionOperations:
    """VisionOperations on a GPU. pdl: see `triptych.kernels.launch`."""

    def __init__(
        self, *, window_tiling: WindowTiling | None = None, full_tiling: FullTiling | None = None, pdl: bool = False
    ) -> None:
        self._window_tiling = window_tiling
        self._full_tiling = full_tiling
        self._pdl = pdl

    def norm(self, states: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        rms_norm(states, weight, eps, out=out, pdl=self._pdl)

    def add_norm(self, states: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        fused_add_rms_norm(states, residual, weight, eps, out=out, pdl=self._pdl)

    def silu_and_mul(self, gate_up: Tensor, out: Tensor) -> None:
        silu_and_mul(gate_up, out=out, pdl=self._pdl)

    def window_attention(self, qkv: Tensor, layout: FusedLayout, head_dim: int, out: Tensor) -> None:
        window_attention(
            qkv, layout.cos, layout.sin, layout.windows, layout.max_window, head_dim, out=out,
            tiling=self._window_tiling, pdl=self._pdl,
        )  # fmt: skip

    def full_attention(self, qkv: Tensor, layout: FusedLayout, head_dim: int, out: Tensor) -> None:
        rotate_query_and_key(qkv, layout.cos, layout.sin, head_dim, pdl=self._pdl)
        full_attention(qkv, layout.tiles, head_dim, out=out, tiling=self._full_tiling, pdl=self._pdl)
