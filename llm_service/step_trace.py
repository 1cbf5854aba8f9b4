"""StepTrace: steps of the plain model on a CPU, recorded once and then run in a few calls.

A small model's step is some three hundred calls of a few microseconds each. Made from Python they cost as much again,
and each gives the interpreter's lock away and has to wait for the threads that take it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor, nn

from llm_service.attention.torch import chunk_attention, decode_attention
from llm_service.kv_cache import PagedKvCache
from llm_service.scheduler import Chunk
from llm_service.step_inputs import decode_position, decode_slot, lay_over_media, slots_of
from triptych.models.qwen2_5_vl.language import LanguageModel

# What is recorded holds for any number of tokens and pages; a dimension of 1 would be taken for one to broadcast.
_NUM_RECORDED = 2
# The first runs are slow: the recording is compiled in them.
_NUM_WARM_UP_STEPS = 3


class StepTrace:
    """One call for the sequences that bring a token of their answer each, and one for each chunk of a prompt: beside
    the work of its tokens, that the weights are read once more does not count.

    `prepare` before use. TorchScript records and runs it: of what torch has, it alone leaves Python out without a
    compiler on the machine.
    """

    def __init__(self, model: LanguageModel, cache: PagedKvCache) -> None:
        self._model = model
        self._page_size = cache.page_size
        self._decodes: nn.Module = _DecodeStep(model, cache)
        self._chunk: nn.Module = _ChunkStep(model, cache)

    def prepare(self) -> None:
        """Records both over the first page, which must be free."""
        numbers = torch.arange(_NUM_RECORDED)
        positions = numbers.expand(3, -1)
        tables = torch.zeros((_NUM_RECORDED, _NUM_RECORDED), dtype=torch.int64)
        with torch.inference_mode():
            self._decodes = _recorded(self._decodes, (numbers, positions, numbers, tables, numbers + 1))
            embeddings = self._model.embed(numbers)
            self._chunk = _recorded(self._chunk, (embeddings, positions, numbers, tables[0], numbers))

    def logits(self, chunks: Seq[Chunk], token_ids: Seq[Seq[int]]) -> Tensor:
        """Computes the chunks, whose tokens are `token_ids`. Of the next tokens of those that are sampled, in their
        order: float32 [N, vocab]."""
        decodes = [index for index, chunk in enumerate(chunks) if _is_decode(chunk)]
        parts, order = [], []
        for group in self._even_groups(chunks, decodes):
            parts.append(self._decode_logits([chunks[index] for index in group], [token_ids[index] for index in group]))
            order += group
        for index, chunk in enumerate(chunks):
            if _is_decode(chunk):
                continue
            logits = self._chunk_logits(chunk, token_ids[index])
            if chunk.is_sampled:
                parts.append(logits)
                order.append(index)
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))] if parts else torch.empty((0, 0))

    def _even_groups(self, chunks: Seq[Chunk], indices: Seq[int]) -> Iterable[list[int]]:
        """All together where padding to the longest no more than doubles the work, else by their numbers of pages."""
        nums_pages = {index: self._num_pages(chunks[index]) for index in indices}
        if not nums_pages or len(nums_pages) * max(nums_pages.values()) <= 2 * sum(nums_pages.values()):
            return [list(indices)] if indices else []
        groups: dict[int, list[int]] = {}
        for index, num_pages in nums_pages.items():
            groups.setdefault(num_pages.bit_length(), []).append(index)
        return groups.values()

    def _decode_logits(self, chunks: Seq[Chunk], token_ids: Seq[Seq[int]]) -> Tensor:
        nums_pages = [self._num_pages(chunk) for chunk in chunks]
        # Padding reads page 0, which is masked.
        tables = np.zeros((len(chunks), max(nums_pages)), dtype=np.int64)
        for row, (chunk, num_pages) in enumerate(zip(chunks, nums_pages, strict=True)):
            tables[row, :num_pages] = chunk.block_table[:num_pages]
        logits: Tensor = self._decodes(
            torch.tensor([token for (token,) in token_ids]),
            torch.tensor([decode_position(chunk) for chunk in chunks]).T,
            torch.tensor([decode_slot(chunk, self._page_size) for chunk in chunks]),
            torch.from_numpy(tables),
            torch.tensor([chunk.end for chunk in chunks]),
        )
        return logits

    def _chunk_logits(self, chunk: Chunk, token_ids: Seq[int]) -> Tensor:
        embeddings = self._model.embed(torch.tensor(token_ids))
        lay_over_media(embeddings, chunk, first_row=0)
        logits: Tensor = self._chunk(
            embeddings,
            torch.from_numpy(chunk.sequence.positions(chunk.start, chunk.end)),
            torch.from_numpy(slots_of(chunk, self._page_size)),
            torch.tensor(chunk.block_table[: self._num_pages(chunk)].tolist()),
            torch.arange(chunk.start, chunk.end),
        )
        return logits

    def _num_pages(self, chunk: Chunk) -> int:
        return -(-chunk.end // self._page_size)


class _DecodeStep(nn.Module):
    """One new token each of B sequences. token_ids, slots, num_tokens (with the new one): int64 [B]; positions [3, B];
    tables [B, num_pages]. Logits [B, vocab]."""

    def __init__(self, model: LanguageModel, cache: PagedKvCache) -> None:
        super().__init__()
        self.model = model
        self._cache = cache

    def forward(
        self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor, num_tokens: Tensor
    ) -> Tensor:
        attention = decode_attention(self._cache, slots, tables, num_tokens)
        return self.model.logits(self.model(self.model.embed(token_ids), positions, attention))


class _ChunkStep(nn.Module):
    """T tokens of one sequence. embeddings [T, hidden]; positions [3, T]; slots, places: int64 [T]; pages: int64
    [num_pages]. Logits of the last [1, vocab]."""

    def __init__(self, model: LanguageModel, cache: PagedKvCache) -> None:
        super().__init__()
        self.model = model
        self._cache = cache

    def forward(self, embeddings: Tensor, positions: Tensor, slots: Tensor, pages: Tensor, places: Tensor) -> Tensor:
        attention = chunk_attention(self._cache, slots, pages, places)
        return self.model.logits(self.model(embeddings, positions, attention)[-1:])


def _recorded(step: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    with warnings.catch_warnings():
        # It is said to have no future, and still has no successor (see `StepTrace`).
        warnings.simplefilter("ignore", DeprecationWarning)
        recorded: nn.Module = torch.jit.trace(step, inputs, check_trace=False)  # type: ignore[no-untyped-call]
    for _ in range(_NUM_WARM_UP_STEPS):
        recorded(*inputs)
    return recorded


def _is_decode(chunk: Chunk) -> bool:
    return chunk.num_new_tokens == 1 and chunk.start >= chunk.sequence.prompt.num_tokens
