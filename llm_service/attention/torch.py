"""TorchPagedAttention: the plain reference, and quick enough for a CPU.

Sequences with one new token are attended together, their pages gathered and padded. Chunks of prompts are attended one
by one, over their gathered pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_service.attention.base import StepLayout
from llm_service.kv_cache import PagedKvCache
from triptych.models.qwen2_5_vl.attention import Attention


class TorchPagedAttention:
    """Gathers pages and leaves the rest to torch's scaled dot product attention."""

    def __init__(self, cache: PagedKvCache) -> None:
        self.cache = cache

    def plan(self, layout: StepLayout) -> Attention:
        decodes: dict[int, list[int]] = {}
        groups: list[_Group] = []
        first_token = 0
        token_of_sequence = []
        for index, num_new in enumerate(layout.num_new_tokens):
            token_of_sequence.append(first_token)
            num_pages = -(-layout.num_tokens[index] // self.cache.page_size)
            if num_new == 1:
                # Padding to the longest of all would let one long sequence multiply everybody's work.
                decodes.setdefault(num_pages.bit_length(), []).append(index)
            else:
                groups.append(self._plan_chunk(layout, index, first_token, num_pages))
            first_token += num_new
        groups.extend(self._plan_decodes(layout, indices, token_of_sequence) for indices in decodes.values())
        return _StepAttention(self.cache, torch.from_numpy(layout.slots).to(self.cache.device), groups)

    def _plan_chunk(self, layout: StepLayout, index: int, first_token: int, num_pages: int) -> _Chunk:
        num_new, num_tokens = layout.num_new_tokens[index], layout.num_tokens[index]
        device = self.cache.device
        pages = torch.tensor(layout.block_tables[index][:num_pages].tolist(), device=device)
        query_positions = torch.arange(num_tokens - num_new, num_tokens, device=device)
        rows = slice(first_token, first_token + num_new)
        return _Chunk(rows, pages, _mask(self.cache, num_pages, query_positions + 1))

    def _plan_decodes(self, layout: StepLayout, indices: list[int], token_of_sequence: list[int]) -> _Decodes:
        device, page_size = self.cache.device, self.cache.page_size
        num_tokens = [layout.num_tokens[index] for index in indices]
        num_pages = -(-max(num_tokens) // page_size)
        # Padding reads page 0, which is masked.
        tables = [(layout.block_tables[index].tolist() + [0] * num_pages)[:num_pages] for index in indices]
        tokens = torch.tensor([token_of_sequence[index] for index in indices], device=device)
        mask = _mask(self.cache, num_pages, torch.tensor(num_tokens, device=device))
        return _Decodes(tokens, torch.tensor(tables, device=device), mask[:, None, None, :])


def decode_attention(cache: PagedKvCache, slots: Tensor, tables: Tensor, num_tokens: Tensor) -> Attention:
    """That of a step with one new token each of B sequences, in one group. slots, num_tokens (with the new one): int64
    [B]; tables: int64 [B, num_pages], filled up with any pages. Which calls it makes does not depend on the values."""
    mask = _mask(cache, tables.shape[1], num_tokens)
    return _StepAttention(cache, slots, [_Decodes(slots, tables, mask[:, None, None, :])])


def chunk_attention(cache: PagedKvCache, slots: Tensor, pages: Tensor, places: Tensor) -> Attention:
    """That of a step with new tokens of one sequence. slots, places (in the sequence): int64 [T]; pages: int64
    [num_pages], all that hold tokens. Which calls it makes does not depend on the values."""
    return _StepAttention(cache, slots, [_Chunk(slice(None), pages, _mask(cache, pages.shape[0], places + 1))])


def _mask(cache: PagedKvCache, num_pages: int, num_tokens: Tensor) -> Tensor:
    """What is added to scores: 0 for the first num_tokens [N], -inf behind, [N, num_pages * page_size].

    Not a mask of booleans: of that every layer would make this one anew.
    """
    places = torch.arange(num_pages * cache.page_size, device=num_tokens.device)
    mask = torch.zeros_like(places, dtype=cache.tensor.dtype)
    return mask.masked_fill(places >= num_tokens[:, None], -torch.inf)


class _Group(Protocol):
    """Sequences attended in one call."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> None:
        """Reads its rows of query [T, num_heads, head_dim] and its pages of the layer, writes its rows of output."""
        ...

    def attended(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What its own rows of query, alone and in order, attend to; of the same shape."""
        ...


@dataclass(frozen=True)
class _StepAttention:
    cache: PagedKvCache
    slots: Tensor
    groups: list[_Group]

    def __call__(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.cache.store(layer_index, self.slots, key, value)
        keys, values = self.cache.layer(layer_index)
        if len(self.groups) == 1:
            # The usual step: every row belongs to the group, in the order of the rows.
            return self.groups[0].attended(query, keys, values)
        output = torch.empty_like(query)
        for group in self.groups:
            group.attend(query, keys, values, output)
        return output


@dataclass(frozen=True)
class _Chunk:
    """Several new tokens of one sequence. mask: [num_new, num_pages * page_size], added."""

    rows: slice
    pages: Tensor
    mask: Tensor

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> None:
        output[self.rows] = self.attended(query[self.rows], keys, values)

    def attended(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        key, value = (pages.index_select(0, self.pages).flatten(0, 1).transpose(0, 1) for pages in (keys, values))
        attended = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None], key[None], value[None], attn_mask=self.mask, enable_gqa=True
        )
        return attended[0].transpose(0, 1)


@dataclass(frozen=True)
class _Decodes:
    """One new token each of B sequences. tables: [B, num_pages]; mask: [B, 1, 1, num_pages * page_size], added."""

    tokens: Tensor
    tables: Tensor
    mask: Tensor

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> None:
        output[self.tokens] = self.attended(query[self.tokens], keys, values)

    def attended(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        key, value = self._gather(keys), self._gather(values)
        # The query heads that share a KV head take the place of the query tokens: nothing has to be repeated.
        grouped = query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
        return F.scaled_dot_product_attention(grouped, key, value, attn_mask=self.mask).flatten(1, 2)

    def _gather(self, pages: Tensor) -> Tensor:
        """Keys or values [B, num_kv_heads, num_pages * page_size, head_dim] of the group's sequences."""
        gathered = pages.index_select(0, self.tables.view(-1))
        return gathered.view(self.tables.shape[0], -1, *pages.shape[2:]).transpose(1, 2)
