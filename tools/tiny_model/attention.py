"""Attention within segments of a packed sequence: FlashAttention's varlen kernel, or padding."""

from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor


class SegmentAttention(Protocol):
    """query, key, value [tokens, heads, head_dim]; `ends` [segments + 1] int32; no segment exceeds `longest`."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int) -> Tensor: ...


def padded_attention(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int) -> Tensor:
    """Works everywhere: scatters each segment into a row of `longest` tokens and masks the rest."""
    tokens, heads, head_dim = query.shape
    num_segments = len(ends) - 1
    token = torch.arange(tokens, device=query.device)
    segment = torch.bucketize(token, ends[1:], right=True)
    slot = segment * longest + token - ends[segment]
    mask = torch.arange(longest, device=query.device) < (ends[1:] - ends[:-1])[:, None]
    padded = [
        tensor.new_zeros(num_segments * longest, heads, head_dim)
        .index_copy(0, slot, tensor)
        .view(num_segments, longest, heads, head_dim)
        .transpose(1, 2)
        for tensor in (query, key, value)
    ]
    attended = functional.scaled_dot_product_attention(
        padded[0], padded[1], padded[2], attn_mask=mask[:, None, None, :]
    )
    return attended.transpose(1, 2).reshape(num_segments * longest, heads, head_dim)[slot]


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int) -> Tensor:
    """FlashAttention without padding; CUDA and half precision alone."""
    from torch.nn.attention.varlen import varlen_attn

    attended = varlen_attn(query.contiguous(), key.contiguous(), value.contiguous(), ends, ends, longest, longest)
    assert isinstance(attended, Tensor)
    return attended


def pick_attention(device: torch.device, heads: int, head_dim: int) -> SegmentAttention:
    """The varlen kernel where it runs forward and backward and agrees with the padded one, which is used otherwise."""
    if device.type != "cuda":
        return padded_attention
    try:
        ends = torch.tensor([0, 16, 20, 84], dtype=torch.int32, device=device)
        inputs = torch.randn(3, 84, heads, head_dim, device=device, dtype=torch.bfloat16)
        results = []
        for attention in (varlen_attention, padded_attention):
            leaf = inputs.clone().requires_grad_()
            output = attention(leaf[0], leaf[1], leaf[2], ends, 64)
            torch.autograd.backward(output.float().square().sum())
            assert leaf.grad is not None
            results.append((output.detach().float(), leaf.grad.float()))
        for ours, reference in zip(*results, strict=True):
            torch.testing.assert_close(ours, reference, atol=0.1, rtol=0.1)
    except Exception as error:
        print(f"varlen attention is not usable here, padding instead: {type(error).__name__}: {error}", flush=True)
        return padded_attention
    return varlen_attention
