"""Rotary cosines and sines of patches, from their row and column in the frame."""

import torch
from torch import Tensor

from triptych.models.qwen2_5_vl.vision.upload import upload

# Fixed in the architecture: the published configurations have no field for it.
ROTARY_THETA = 10_000.0
# A frame of more patches a side than this comes of pictures over 14,336 px: the table grows then.
INITIAL_POSITIONS = 1_024


class AxisRotary:
    """Table of one axis on one device: float32 [positions, head_dim / 4] cosines, and as many sines.

    Each axis turns half of the head_dim / 2 frequencies, the row the first half.
    """

    def __init__(self, head_dim: int, device: torch.device) -> None:
        axis_dim = head_dim // 2
        frequencies = 1.0 / ROTARY_THETA ** (torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim)
        (self._frequencies,) = upload([frequencies.numpy()], device)
        self.grow(INITIAL_POSITIONS)

    @property
    def num_positions(self) -> int:
        return len(self.cos)

    def grow(self, num_positions: int) -> None:
        """Makes room for positions below `num_positions`."""
        positions = torch.arange(num_positions, dtype=torch.float32, device=self._frequencies.device)
        angles = positions[:, None] * self._frequencies
        self.cos, self.sin = angles.cos(), angles.sin()

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: integers [num_patches, 2] on the device, below `num_positions`. Float32 [num_patches,
        head_dim / 2] each."""
        flat = positions.reshape(-1)
        shape = (len(positions), -1)
        return self.cos.index_select(0, flat).view(shape), self.sin.index_select(0, flat).view(shape)
