"""What the language model asks of its attention, and the plain reference that fulfils it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Attention(Protocol):
    """Causal attention of one forward pass. It alone knows which tokens belong together and where their cache is."""

    def __call__(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attends for the T packed tokens of a step; query and key are already rotated.

        query [T, num_heads, head_dim], key and value [T, num_kv_heads, head_dim]; returns [T, num_heads, head_dim].
        """
        ...


class DenseCausalAttention:
    """Whole sequences, packed one after the other, without a cache. The reference for every other attention."""

    def __init__(self, sequence_lengths: Sequence[int]) -> None:
        self.sequence_lengths = list(sequence_lengths)

    def __call__(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sequences = zip(*(torch.split(states, self.sequence_lengths) for states in (query, key, value)), strict=True)
        return torch.cat([self._attend(*sequence) for sequence in sequences])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One sequence, [length, heads, head_dim]."""
        query, key, value = (states.transpose(0, 1)[None] for states in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return output[0].transpose(0, 1)
