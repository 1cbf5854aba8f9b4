"""Bicubic resizing with antialias as tables of integer weights: the arithmetic of torch's kernel for uint8 on a CPU.

torch (and Pillow before it) weighs the pixels under a cubic filter, stretched by the scale where a picture shrinks, in
fixed point, and rounds to uint8 after the columns and again after the rows. Tables with the same integers give the same
pixels on any device, to the last bit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Keys' cubic convolution with a = -0.5, as with antialias in torch and Pillow; it reaches two pixels to each side.
_CUBIC_A = -0.5
_CUBIC_REACH = 2.0
# A weight must fit into int16 in the CPU kernel, which takes the finest fixed point that lets it.
_MAX_PRECISION = 22
_WEIGHT_LIMIT = 1 << 15


@dataclass(frozen=True)
class ResizeTaps:
    """How one axis is brought from `in_size` to `out_size` pixels.

    Output pixel i is the sum over k of input pixel `starts[i] + k`, times `weights[k, i]`, plus half, shifted right by
    `precision` bits and cut to 0..255. `starts` int32 [out_size], `weights` int32 [num_taps, out_size]; weights beyond
    the picture's end are 0, and a sum stays within int32.
    """

    in_size: int
    out_size: int
    starts: Tensor
    weights: Tensor
    precision: int

    @property
    def num_taps(self) -> int:
        return self.weights.shape[0]

    def to(self, device: torch.device) -> "ResizeTaps":
        """A copy on `device`, enqueued on the current stream without waiting."""
        if device.type == "cpu":
            return self
        starts, weights = (table.pin_memory().to(device, non_blocking=True) for table in (self.starts, self.weights))
        return ResizeTaps(self.in_size, self.out_size, starts, weights, self.precision)


def resize_taps(in_size: int, out_size: int) -> ResizeTaps:
    """The table, on the CPU. Equal sizes give one tap of weight 1."""
    if in_size == out_size:
        starts = torch.arange(out_size, dtype=torch.int32)
        return ResizeTaps(in_size, out_size, starts, torch.ones(1, out_size, dtype=torch.int32), 0)
    scale = in_size / out_size
    reach = _CUBIC_REACH * max(scale, 1.0)
    centers = scale * (np.arange(out_size) + 0.5)
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + reach + 0.5).astype(np.int64), in_size)
    num_taps = int((last - first).max())
    taps = first[:, None] + np.arange(num_taps)
    weights = _cubic((taps - centers[:, None] + 0.5) / max(scale, 1.0))
    weights[taps >= last[:, None]] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    precision = _finest_precision(float(weights.max()))
    scaled = weights * (1 << precision)
    fixed = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    return ResizeTaps(
        in_size, out_size, torch.from_numpy(first.astype(np.int32)), torch.from_numpy(fixed.T.copy()), precision
    )


def _cubic(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    x, a = np.abs(distances), _CUBIC_A
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _finest_precision(largest: float) -> int:
    for precision in range(_MAX_PRECISION):
        if int(0.5 + largest * (1 << (precision + 1))) >= _WEIGHT_LIMIT:
            return precision
    return _MAX_PRECISION
