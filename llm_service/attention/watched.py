"""Attention of a step that tells when its layers are computed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llm_service.runner import LayerWatch
from triptych.models.qwen2_5_vl.attention import Attention


@dataclass(frozen=True)
class WatchedAttention:
    """A layer's keys and values are in their pages once it was attended; what follows in the layer changes none."""

    attention: Attention
    watch: LayerWatch

    def __call__(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = self.attention(layer_index, query, key, value)
        if layer_index + 1 in self.watch.ends:
            self.watch.report(layer_index + 1)
        return output
