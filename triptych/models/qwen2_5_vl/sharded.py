"""One rank's part of the language model: the same forward pass, with sums and a gather over the ranks inside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.models.qwen2_5_vl.config import TextConfig
from triptych.models.qwen2_5_vl.language import DecoderLayer, LanguageModel
from triptych.models.qwen2_5_vl.sharding import Collectives, Shard, shard_config


class ShardedLanguageModel(LanguageModel):
    """`config` is the rank's own (`shard_config`). Every rank gets the same hidden states and the same logits.

    Complete only after `sum_over_ranks`, which has to come after the linears were quantized, if they are.
    """

    def __init__(self, config: TextConfig, collectives: Collectives) -> None:
        super().__init__(shard_config(config, collectives.size))
        self.collectives = collectives
        if self.lm_head is not None:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size // collectives.size, bias=False)

    def sum_over_ranks(self) -> None:
        """Has the outputs of the linears that are cut by column summed, whoever calls them."""
        for layer in self.modules():
            if isinstance(layer, DecoderLayer):
                layer.self_attn.o_proj.register_forward_hook(self._sum)
                layer.mlp.down_proj.register_forward_hook(self._sum)

    def own_head(self) -> Tensor:
        """The rows of the head [vocab / size, hidden] that this rank computes; of a tied embedding a view."""
        if self.lm_head is not None:
            return self.lm_head.weight
        weight = self.embed_tokens.weight
        first, end = Shard(self.collectives.rank, self.collectives.size).span(len(weight))
        return weight[first:end]

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states [N, hidden] to logits [N, vocab], float32, on every rank."""
        return self.gather_logits(F.linear(hidden, self.own_head())).float()

    def gather_logits(self, own: Tensor, out: Tensor | None = None) -> Tensor:
        """This rank's logits [N, vocab / size] to those of all ranks [N, vocab]."""
        gathered = self.collectives.all_gather(own).transpose(0, 1)
        if out is None:
            return gathered.flatten(1)
        out.view(gathered.shape).copy_(gathered)
        return out

    def _sum(self, linear: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        self.collectives.all_reduce(output)
        return output


def num_sharded_parameters(config: TextConfig, size: int) -> int:
    """Parameters that each of `size` ranks holds; nothing is allocated."""
    with torch.device("meta"):
        model = ShardedLanguageModel(config, _NoCollectives(size))
    return sum(parameter.numel() for parameter in model.parameters())


class _NoCollectives:
    """The first rank of a group that computes nothing."""

    def __init__(self, size: int) -> None:
        self.rank = 0
        self.size = size

    def all_reduce(self, tensor: Tensor) -> None:
        raise NotImplementedError

    def all_gather(self, tensor: Tensor) -> Tensor:
        raise NotImplementedError

    def min_of(self, number: int) -> int:
        return number
