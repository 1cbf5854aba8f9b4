"""Packed patches cut into segments that attend only within themselves."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.kernels.vision_tiles import cumulative
from triptych.models.qwen2_5_vl.vision.order import Integers
from triptych.models.qwen2_5_vl.vision.upload import upload


@dataclass(frozen=True)
class SegmentGroup:
    """All segments of one length. `rows` names their patches, [num_segments * length] int64."""

    length: int
    rows: Tensor


@dataclass(frozen=True)
class Segments:
    """The segments of one packed forward pass, with everything an attention may need made once, not per block.

    `cu_seqlens` [num_segments + 1] int32 on the device is where each segment starts, and the end, as kernels for
    packed attention want it. `max_length` is a host value. `groups` holds the segments by length, and is empty when
    all are `max_length` long.
    """

    cu_seqlens: Tensor
    max_length: int
    groups: tuple[SegmentGroup, ...]

    @classmethod
    def from_lengths(cls, lengths: Integers, device: torch.device) -> "Segments":
        """From the lengths of consecutive segments, [num_segments] int64 on the host."""
        starts = cumulative(lengths)
        distinct = np.unique(lengths).tolist()
        grouped = distinct if len(distinct) > 1 else []
        rows = [(starts[:-1][lengths == length][:, None] + np.arange(length)).reshape(-1) for length in grouped]
        cu_seqlens, *device_rows = upload([starts.astype(np.int32), *rows], device)
        groups = tuple(SegmentGroup(length, of_group) for length, of_group in zip(grouped, device_rows, strict=True))
        return cls(cu_seqlens, distinct[-1], groups)
