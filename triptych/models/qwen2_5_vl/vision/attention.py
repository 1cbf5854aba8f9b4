"""What the vision tower asks of its attention, and the plain implementation in torch."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.models.qwen2_5_vl.vision.segments import Segments


class VisionAttention(Protocol):
    """Attention without a mask inside each segment: a window, or a whole frame."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        """All arguments and the result are [num_patches, num_heads, head_dim]; query and key are already rotated."""
        ...


class SegmentedAttention:
    """Runs the segments of each length as one batch: one call when all are equal, a few otherwise."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        if not segments.groups:
            return _attend(query, key, value, segments.max_length)
        output = torch.empty_like(query)
        for group in segments.groups:
            part = _attend(query[group.rows], key[group.rows], value[group.rows], group.length)
            output.index_copy_(0, group.rows, part)
        return output


def _attend(query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
    """Consecutive segments of `length` patches, [num_segments * length, num_heads, head_dim]."""
    batch_shape = (-1, length, *query.shape[1:])
    query, key, value = (states.reshape(batch_shape).transpose(1, 2) for states in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1)
