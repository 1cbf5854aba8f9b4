"""The shapes that the kernel benchmarks run at, and inputs of those shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPE = torch.bfloat16
EPS = 1e-6
SECTIONS = (16, 24, 24)
THETA = 1e6


@dataclass(frozen=True)
class ModelShape:
    name: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    intermediate: int
    vocab: int
    head_dim: int = 128

    @property
    def qkv(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.num_kv_heads * self.head_dim * DTYPE.itemsize

    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each linear of a step; gate_up counts both halves."""
        return {
            "qkv": (self.qkv, self.hidden),
            "o": (self.hidden, self.attention),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
            "lm_head": (self.vocab, self.hidden),
        }


MODELS = (
    ModelShape("3B", 36, 2048, 16, 2, 11_008, 151_936),
    ModelShape("7B", 28, 3584, 28, 4, 18_944, 152_064),
)


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=DTYPE).mul_(scale)


def random_weight(outputs: int, inputs: int) -> Tensor:
    return randn(outputs, inputs, scale=inputs**-0.5)


@dataclass(frozen=True)
class PagedInputs:
    """One layer's pages and the sequences in them. slots, positions: of each sequence's last token."""

    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    context_lengths: Tensor
    slots: Tensor
    positions: Tensor

    @property
    def pages(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What an attention over pages takes after the query."""
        return self.key_cache, self.value_cache, self.block_table, self.context_lengths


def paged_inputs(model: ModelShape, lengths: list[int], *, page_size: int = 16, max_context: int = 0) -> PagedInputs:
    """Random keys and values in pages of random order; sequences of length 0 are padding."""
    device = torch.device("cuda")
    pages_of = [-(-length // page_size) for length in lengths]
    num_pages = sum(pages_of) + 1
    cache = randn(2, num_pages, page_size, model.num_kv_heads, model.head_dim)
    order = torch.randperm(num_pages - 1).to(torch.int32) + 1
    table = torch.zeros(len(lengths), max(1, -(-max(max_context, *lengths) // page_size)), dtype=torch.int32)
    slots = torch.full((len(lengths),), -1, dtype=torch.int64)
    first = 0
    for sequence, (length, pages) in enumerate(zip(lengths, pages_of, strict=True)):
        table[sequence, :pages] = order[first : first + pages]
        if length:
            slots[sequence] = int(table[sequence, pages - 1]) * page_size + (length - 1) % page_size
        first += pages
    context = torch.tensor(lengths, dtype=torch.int32)
    positions = (context.long() - 1).clamp(min=0).expand(3, -1).contiguous()
    return PagedInputs(cache[0], cache[1], table.to(device), context.to(device), slots.to(device), positions.to(device))
