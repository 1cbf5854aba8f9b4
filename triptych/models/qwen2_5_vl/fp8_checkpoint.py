"""What FP8 checkpoints hold beside the weights, in the layouts of compressed-tensors and of `quant_method: fp8`.

Both put `weight_scale` beside an e4m3 `weight`: one value per output channel, or one for all of them. A static
`input_scale` is left aside: activations get their scales as they come. Block scales (`weight_scale_inv`) are not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from triptych.errors import ModelError

SCALE_SUFFIX = ".weight_scale"
_IGNORED_SUFFIXES = (".input_scale", ".output_scale", ".k_scale", ".v_scale")
_BLOCK_SUFFIX = ".weight_scale_inv"


class StoredTensor(Protocol):
    """A tensor of a checkpoint: its shape is known before it is read."""

    shape: tuple[int, ...]

    def read(self) -> Tensor: ...

    def read_part(self, dim: int, first: int, end: int) -> Tensor:
        """The values [first, end) of one dimension, and no others."""
        ...


class ChannelScales:
    """The scales of a weight of `num_rows` output channels, [num_rows, 1], where the file may have one for all."""

    def __init__(self, stored: StoredTensor, num_rows: int) -> None:
        self._stored = stored
        self.shape: tuple[int, ...] = (num_rows, 1)

    def read(self) -> Tensor:
        return self._stored.read().to(torch.float32).reshape(-1, 1).expand(self.shape)

    def read_part(self, dim: int, first: int, end: int) -> Tensor:
        return self.read().narrow(dim, first, end - first)


def with_channel_scales(tensors: dict[str, StoredTensor], where: object) -> dict[str, StoredTensor]:
    """The tensors with every scale as one value per output channel, and without what is not used.

    Raises ModelError for scales by block, or of a number that fits neither the rows nor one for all.
    """
    blocks = [name for name in tensors if name.endswith(_BLOCK_SUFFIX)]
    if blocks:
        raise ModelError(
            f"{where}: {blocks[0]} scales an FP8 weight by block; scales per output channel or per tensor are read"
        )
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED_SUFFIXES)}
    for name in [name for name in kept if name.endswith(SCALE_SUFFIX)]:
        weight = kept.get(name.removesuffix("_scale"))
        if weight is None:
            continue  # reported as unexpected
        num_rows, num_scales = weight.shape[0], int(torch.Size(kept[name].shape).numel())
        if num_scales not in (1, num_rows):
            raise ModelError(
                f"{where}: {name} has {num_scales} values for {num_rows} output channels, expected 1 or all"
            )
        kept[name] = ChannelScales(kept[name], num_rows)
    return kept


def scaled_linears(names: Iterable[str], fused_names: dict[str, tuple[str, ...]]) -> set[str]:
    """The linears that have scales, by their name in the model, where some of the checkpoint's are joined."""
    joined = {part: fused for fused, parts in fused_names.items() for part in parts}
    plain = (name.removesuffix(SCALE_SUFFIX).rpartition(".") for name in names if name.endswith(SCALE_SUFFIX))
    return {f"{parent}.{joined.get(leaf, leaf)}" for parent, _, leaf in plain}
