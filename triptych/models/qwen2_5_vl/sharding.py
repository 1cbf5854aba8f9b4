"""Which part of the language model each of several ranks holds (tensor parallelism).

Query, key and value are cut by KV head and gate and up by row, so that a rank computes its own heads and its own part
of the MLP; `o_proj` and `down_proj` are cut by column, and their outputs are summed over the ranks. The head is cut by
token id. The embedding is whole on every rank: a lookup reads a row a token, so a cut would save memory alone (1.9 GB
of a 72B rank's 38 at 4 ranks) and cost one more sum over the ranks in every step. Norms are whole, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.config import TextConfig
from triptych.models.qwen2_5_vl.fp8_checkpoint import SCALE_SUFFIX, StoredTensor

_CUT_BY_ROW = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
_CUT_BY_COLUMN = ("o_proj", "down_proj")


class Collectives(Protocol):
    """What the ranks of a group do together, in the same order on each of them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces the tensor by its sum over the ranks, the same bits on each."""
        ...

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[size, *tensor.shape]: the tensor of every rank."""
        ...

    def min_of(self, number: int) -> int:
        """The smallest of the ranks' numbers; waits for all of them."""
        ...


@dataclass(frozen=True)
class Shard:
    """Rank `rank` of `size`."""

    rank: int
    size: int

    def span(self, num_all: int) -> tuple[int, int]:
        """First and end of this rank's part of `num_all` rows or columns."""
        num_own = num_all // self.size
        return self.rank * num_own, (self.rank + 1) * num_own


def shard_config(config: TextConfig, size: int) -> TextConfig:
    """What one of `size` ranks computes. The vocabulary is that of the whole model.

    Raises ModelError, with the numbers, when something does not divide.
    """
    counts = {
        "num_key_value_heads": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    uneven = [f"{name} is {count}" for name, count in counts.items() if count % size]
    if uneven:
        raise ModelError(
            f"the checkpoint can't be cut into {size} equal parts: {', '.join(uneven)}; "
            "set stages.*.tensor_parallel to a number that divides them",
            field="tensor_parallel",
        )
    return replace(
        config,
        num_key_value_heads=config.num_key_value_heads // size,
        num_attention_heads=config.num_attention_heads // size,
        intermediate_size=config.intermediate_size // size,
    )


class TensorPart:
    """The part [first, end) of a checkpoint's tensor in one dimension; nothing else of it is read."""

    def __init__(self, stored: StoredTensor, dim: int, first: int, end: int) -> None:
        self._stored = stored
        self._dim, self._first, self._end = dim, first, end
        self.shape = (*stored.shape[:dim], end - first, *stored.shape[dim + 1 :])

    def read(self) -> Tensor:
        return self._stored.read_part(self._dim, self._first, self._end)

    def read_part(self, dim: int, first: int, end: int) -> Tensor:
        return self.read().narrow(dim, first, end - first)


def shard_tensors(tensors: Mapping[str, StoredTensor], shard: Shard) -> dict[str, StoredTensor]:
    """The checkpoint's tensors as the rank reads them. Those that do not divide are left whole, to be found unfit."""
    parts: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        dim = _cut_dim(name)
        if dim is None or len(tensor.shape) <= dim or tensor.shape[dim] % shard.size:
            parts[name] = tensor
        else:
            parts[name] = TensorPart(tensor, dim, *shard.span(tensor.shape[dim]))
    return parts


def _cut_dim(name: str) -> int | None:
    """The dimension in which the tensor is cut, if it is. Scales belong to rows."""
    linear = name.split(".")[-2] if "." in name else ""
    if linear in _CUT_BY_ROW:
        return 0
    if linear in _CUT_BY_COLUMN and not name.endswith(SCALE_SUFFIX):
        return 1
    return None
