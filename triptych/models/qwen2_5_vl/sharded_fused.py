"""One rank's part of the language model on fused kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from triptych.models.qwen2_5_vl.fused import FusedLanguageModel
from triptych.models.qwen2_5_vl.sharded import ShardedLanguageModel


class ShardedFusedLanguageModel(FusedLanguageModel):
    """Without the linears for few tokens, which add the residual before the sum over the ranks, and without launches
    that overlap: between the kernels stand those of the collectives."""

    def __init__(self, model: ShardedLanguageModel, max_position: int) -> None:
        super().__init__(model, max_position)
        self._sharded = model

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Final hidden states [N, hidden] to logits [N, vocab], in the dtype of the weights, on every rank."""
        own = F.linear(hidden, self._sharded.own_head())
        return self._sharded.gather_logits(own, out)
