"""TritonPagedAttention: kernels over the pages, and torch's dense attention for prompts without a cached prefix.

The packed tokens of a step are, in this order: decodes (one new token each), chunks of prompts that attend to tokens
in the cache, and long prompts from their first token on (`kind_of_chunk`). Other orders are right too, but slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from llm_service.attention.base import StepLayout
from llm_service.kv_cache import PagedKvCache
from llm_service.page_pool import PageTable
from llm_service.upload import Array, FieldSpec, Upload, bytes_of
from triptych.kernels.decode_attention import (
    DecodePlan,
    DecodeWorkspace,
    choose_plan,
    paged_decode_attention,
    rotary_decode_attention,
)
from triptych.kernels.dense_prefill import dense_causal_attention
from triptych.kernels.prefetch import Upcoming
from triptych.kernels.prefill_attention import PrefillTiling, choose_prefill_splits, paged_prefill_attention
from triptych.kernels.rotary import rotary_and_store
from triptych.models.qwen2_5_vl.fused import PackedRotary

# A whole prompt of so many tokens is quicker through cuDNN; a shorter one goes through the paged kernel like a chunk.
DENSE_MIN_TOKENS = 4_096
# cuDNN plans anew for every length, which takes longer than the few rows by which a prompt is filled up.
_CUDNN_LENGTH_STEP = 512
PREFILL_TILING = PrefillTiling(block_rows=128, block_tokens=128, num_warps=8, num_stages=3)


@dataclass(frozen=True)
class StepShape:
    """What the host knows of a step: how many sequences of each kind there are, and how long the prompts are.

    decode_pages, chunk_pages: width of their block tables. dense_lengths: what each prompt is filled up to for
    `dense_variant`.
    """

    num_tokens: int
    num_decodes: int
    num_chunks: int
    decode_pages: int
    chunk_pages: int
    first_prompt_row: int
    prompt_lengths: tuple[int, ...]
    dense_lengths: tuple[int, ...]
    dense_variant: str

    @classmethod
    def of(cls, layout: StepLayout, device: torch.device) -> StepShape:
        num_new, num_tokens = layout.num_new_tokens, layout.num_tokens
        num_sequences = len(num_new)
        num_decodes = next((i for i, count in enumerate(num_new) if count > 1), num_sequences)
        first_prompt = num_sequences
        while first_prompt > num_decodes and _is_dense(num_new[first_prompt - 1], num_tokens[first_prompt - 1]):
            first_prompt -= 1
        prompt_lengths = tuple(num_new[first_prompt:])
        variant, step = ("cudnn", _CUDNN_LENGTH_STEP) if device.type == "cuda" else ("sdpa", 4)
        return cls(
            num_tokens=sum(num_new),
            num_decodes=num_decodes,
            num_chunks=first_prompt - num_decodes,
            decode_pages=_widest(layout, 0, num_decodes),
            chunk_pages=_widest(layout, num_decodes, first_prompt),
            first_prompt_row=sum(num_new[:first_prompt]),
            prompt_lengths=prompt_lengths,
            dense_lengths=tuple(-(-length // step) * step for length in prompt_lengths),
            dense_variant=variant,
        )

    @classmethod
    def of_decodes(cls, batch: int, num_pages: int) -> StepShape:
        """One new token for each of `batch` sequences of at most `num_pages` pages."""
        return cls(batch, batch, 0, num_pages, 0, batch, (), (), "")

    @classmethod
    def of_chunks(cls, num_decodes: int, num_chunks: int, num_chunk_tokens: int, num_pages: int) -> StepShape:
        """Decodes, and chunks of so many tokens in all, of sequences of at most `num_pages` pages."""
        num_tokens = num_decodes + num_chunk_tokens
        return cls(num_tokens, num_decodes, num_chunks, num_pages, num_pages, num_tokens, (), (), "")

    @property
    def num_query_rows(self) -> int:
        """Rows a query buffer needs, so that each prompt's filled-up view lies inside it."""
        ends = [first + length for first, length in zip(self.prompt_rows, self.dense_lengths, strict=True)]
        return max([self.num_tokens, *ends])

    @property
    def prompt_rows(self) -> list[int]:
        return list(accumulate(self.prompt_lengths[:-1], initial=self.first_prompt_row)) if self.prompt_lengths else []

    def specs(self) -> dict[str, FieldSpec]:
        """The fields of the upload that `fill` writes. Decodes and chunks have their own, each aligned: Triton would
        compile a kernel again for a part of a field."""
        return {
            "slots": ((self.num_tokens,), torch.int64),
            "context_lengths": ((self.num_decodes,), torch.int32),
            "block_table": ((self.num_decodes, self.decode_pages), torch.int32),
            "chunk_context_lengths": ((self.num_chunks,), torch.int32),
            "chunk_block_table": ((self.num_chunks, self.chunk_pages), torch.int32),
            "chunk_ends": ((self.num_chunks + 1,), torch.int32),
            "dense_slots": ((sum(self.dense_lengths),), torch.int64),
        }

    def fill(self, layout: StepLayout, host: Mapping[str, Array]) -> None:
        host["slots"][:] = layout.slots
        decodes = slice(0, self.num_decodes)
        chunks = slice(self.num_decodes, self.num_decodes + self.num_chunks)
        host["context_lengths"][:] = layout.num_tokens[decodes]
        host["chunk_context_lengths"][:] = layout.num_tokens[chunks]
        fill_block_table(layout.block_tables[decodes], host["block_table"])
        fill_block_table(layout.block_tables[chunks], host["chunk_block_table"])
        host["chunk_ends"][:] = [0, *accumulate(layout.num_new_tokens[chunks])]
        first = 0
        for row, length, dense in zip(self.prompt_rows, self.prompt_lengths, self.dense_lengths, strict=True):
            host["dense_slots"][first : first + length] = layout.slots[row : row + length]
            # No row sees what is filled up, but it is read: it must not be NaN, which the cache never holds.
            host["dense_slots"][first + length : first + dense] = 0
            first += dense


class TritonPagedAttention:
    """Rotates, stores and attends from the packed projection (`attend_packed`), or attends to what is rotated."""

    def __init__(self, cache: PagedKvCache) -> None:
        self.cache = cache

    def plan(self, layout: StepLayout) -> TritonStep:
        """As part of a step that has no upload of its own."""
        shape = StepShape.of(layout, self.cache.device)
        specs = shape.specs()
        upload = Upload(bytes_of(specs), self.cache.device)
        fields = upload.fields(specs)
        shape.fill(layout, fields.host[upload.turn])
        upload.send(fields.num_bytes)
        return TritonStep(self.cache, shape, fields.device)


@dataclass(frozen=True)
class TritonStep:
    """The attention of one step. fields: what `StepShape.specs` names, on the device.

    pdl: launches may overlap with the end of the kernel before; see `triptych.kernels.launch`. plan: how decodes are
    cut, by shape when None.
    """

    cache: PagedKvCache
    shape: StepShape
    fields: Mapping[str, Tensor]
    pdl: bool = False
    plan: DecodePlan | None = None
    _workspaces: list[DecodeWorkspace] = field(default_factory=list)
    _chunk_workspaces: list[DecodeWorkspace] = field(default_factory=list)

    def attend_packed(
        self, layer_index: int, qkv: Tensor, rotary: PackedRotary, upcoming: Upcoming | None = None
    ) -> Tensor:
        """Packed projections [T, (num_heads + 2 * num_kv_heads) * head_dim] to attention [T, num_heads * head_dim]."""
        keys, values = self.cache.layer(layer_index)
        num_kv_heads, head_dim = keys.shape[-2:]
        num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
        slots = self.fields["slots"]
        if self.shape.num_decodes == self.shape.num_tokens:
            output = rotary_decode_attention(
                qkv, rotary.positions, rotary.table, rotary.sections, keys, values, slots, self.fields["block_table"],
                self.fields["context_lengths"], self._workspace(num_heads),
                is_merged_by_last=self._plan.is_merged_by_last, tiling=self._plan.tiling,
                upcoming=upcoming, pdl=self.pdl,
            )  # fmt: skip
            return output.flatten(1)
        query = torch.empty((self.shape.num_query_rows, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
        rotary_and_store(
            qkv, rotary.positions, rotary.table, rotary.sections, keys, values, slots, out=query[: len(qkv)]
        )
        return self._attend(query, keys, values).flatten(1)

    def __call__(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.cache.store(layer_index, self.fields["slots"], key, value)
        padding = query.new_zeros((self.shape.num_query_rows - len(query), *query.shape[1:]))
        keys, values = self.cache.layer(layer_index)
        return self._attend(torch.cat([query, padding]), keys, values)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [num_query_rows, num_heads, head_dim], rotated; keys and values of all its tokens are in the cache."""
        shape, fields = self.shape, self.fields
        if shape.first_prompt_row == 0 and len(shape.prompt_lengths) == 1:
            return self._attend_prompts(query, keys, values)[0]
        output = torch.empty((shape.num_tokens, *query.shape[1:]), dtype=query.dtype, device=query.device)
        num_decodes = shape.num_decodes
        if num_decodes:
            paged_decode_attention(
                query[:num_decodes], keys, values, fields["block_table"], fields["context_lengths"],
                self._workspace(query.shape[1]), out=output[:num_decodes],
                is_merged_by_last=self._plan.is_merged_by_last, tiling=self._plan.tiling,
            )  # fmt: skip
        if shape.num_chunks:
            rows = slice(num_decodes, shape.first_prompt_row)
            paged_prefill_attention(
                query[rows], keys, values, fields["chunk_block_table"], fields["chunk_context_lengths"],
                fields["chunk_ends"], workspace=self._chunk_workspace(query.shape[1]), out=output[rows],
                tiling=PREFILL_TILING,
            )  # fmt: skip
        if shape.prompt_lengths:
            torch.cat(self._attend_prompts(query, keys, values), out=output[shape.first_prompt_row :])
        return output

    def _attend_prompts(self, query: Tensor, keys: Tensor, values: Tensor) -> list[Tensor]:
        """The attention of each prompt."""
        shape = self.shape
        slots = self.fields["dense_slots"]
        key, value = (states.flatten(0, 1).index_select(0, slots) for states in (keys, values))
        outputs, first = [], 0
        for row, length, dense in zip(shape.prompt_rows, shape.prompt_lengths, shape.dense_lengths, strict=True):
            rows = slice(first, first + dense)
            # Behind the prompt come queries of others, or none: what they make of it is thrown away.
            attended = dense_causal_attention(
                query[row : row + dense], key[rows], value[rows], [dense], slots, variant=shape.dense_variant
            )
            outputs.append(attended[:length])
            first += dense
        return outputs

    @property
    def _plan(self) -> DecodePlan:
        shape, cache = self.shape, self.cache
        max_context = shape.decode_pages * cache.page_size
        return self.plan or choose_plan(shape.num_decodes, cache.shape.num_kv_heads, max_context)

    def _workspace(self, num_heads: int) -> DecodeWorkspace:
        """One for all layers."""
        if not self._workspaces:
            num_decodes, cache = self.shape.num_decodes, self.cache
            num_kv_heads, head_dim = cache.shape.num_kv_heads, cache.shape.head_dim
            num_splits = self._plan.num_splits
            self._workspaces.append(
                DecodeWorkspace.of(num_decodes, num_heads, num_kv_heads, head_dim, num_splits, cache.device)
            )
        return self._workspaces[0]

    def _chunk_workspace(self, num_heads: int) -> DecodeWorkspace:
        """One for all layers."""
        if not self._chunk_workspaces:
            shape = self.cache.shape
            num_tokens = self.shape.first_prompt_row - self.shape.num_decodes
            num_splits = choose_prefill_splits(num_tokens, num_heads, shape.num_kv_heads, PREFILL_TILING)
            self._chunk_workspaces.append(
                DecodeWorkspace.of(
                    num_tokens, num_heads, shape.num_kv_heads, shape.head_dim, num_splits, self.cache.device
                )
            )
        return self._chunk_workspaces[0]


def warm_dense_attention(
    num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Has the plan made for whole prompts of so many tokens, filled up; returns the number that also serves."""
    num_filled = -(-num_tokens // _CUDNN_LENGTH_STEP) * _CUDNN_LENGTH_STEP
    query = torch.zeros((num_filled, num_heads, head_dim), dtype=dtype, device=device)
    key, value = torch.zeros((2, num_filled, num_kv_heads, head_dim), dtype=dtype, device=device)
    dense_causal_attention(query, key, value, [num_filled], query, variant="cudnn")
    return num_filled


def fill_block_table(tables: Sequence[PageTable], rows: Array) -> None:
    """Writes each table to the start of its row."""
    for row, table in zip(rows, tables, strict=True):
        row[: len(table)] = np.frombuffer(table, dtype=np.int32)


def _widest(layout: StepLayout, first: int, end: int) -> int:
    return max((len(table) for table in layout.block_tables[first:end]), default=0)


def kind_of_chunk(num_new_tokens: int, num_tokens: int) -> int:
    """What a step's chunks are sorted by."""
    if num_new_tokens == 1:
        return 0
    return 2 if _is_dense(num_new_tokens, num_tokens) else 1


def _is_dense(num_new_tokens: int, num_tokens: int) -> bool:
    return num_new_tokens == num_tokens >= DENSE_MIN_TOKENS
