"""Plain-torch references of the vision tower's kernels; this file needs no Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def interleaved_pairs(head_dim: int, device: torch.device | None = None) -> Tensor:
    """The order [head_dim] of a head's values that puts value i beside i + head_dim / 2, with which it turns.

    Scores do not change when query and key are put into the same order, and that is done to the weights, once.
    """
    return torch.arange(head_dim, device=device).view(2, -1).t().reshape(-1)


def rotate_reference(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [T, heads, head_dim] of interleaved pairs by [T, head_dim / 2] in float32."""
    first, second = states.float().view(*states.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.flatten(-2).to(states.dtype)


def rotate_query_and_key_reference(qkv: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> Tensor:
    """What `rotate_query_and_key` makes of `qkv` [T, 3 * hidden]; changes nothing in place."""
    query, key, value = qkv.view(len(qkv), 3, -1, head_dim).unbind(1)
    rotated = [rotate_reference(states, cos, sin) for states in (query, key)]
    return torch.stack((*rotated, value), dim=1).flatten(1)


def segment_attention_reference(qkv: Tensor, lengths: Sequence[int], head_dim: int) -> Tensor:
    """Attention [T, hidden] of rotated `qkv` [T, 3 * hidden] inside consecutive segments of `lengths`, T in all."""
    heads = qkv.view(len(qkv), 3, -1, head_dim)
    attended = []
    for segment in torch.split(heads, list(lengths)):
        query, key, value = segment.permute(1, 2, 0, 3)[:, None]
        attended.append(F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1))
    return torch.cat(attended)
