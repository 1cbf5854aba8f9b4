"""DecodeTrace: the plain decode step on a CPU, recorded once and then run as one call.

A small model's step is some three hundred calls of a few microseconds each. Made from Python they cost as much again,
and each gives the interpreter's lock away and has to wait for the threads that take it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor, nn

from llm_service.attention.torch import decode_attention
from llm_service.kv_cache import PagedKvCache
from llm_service.scheduler import Chunk
from llm_service.step_inputs import decode_position, decode_slot
from triptych.models.qwen2_5_vl.language import LanguageModel

# What is recorded holds for any number of sequences and pages; a dimension of 1 would be taken for one to broadcast.
_NUM_RECORDED = 2
# The first runs are slow: the recording is compiled in them.
_NUM_WARM_UP_STEPS = 3


class DecodeTrace:
    """Steps in which each sequence brings one token of its answer, and none has far fewer pages than others.

    `prepare` before use. TorchScript records and runs it: of what torch has, it alone leaves Python out without a
    compiler on the machine.
    """

    def __init__(self, model: LanguageModel, cache: PagedKvCache) -> None:
        self._step: nn.Module = _DecodeStep(model, cache)
        self._page_size = cache.page_size

    def prepare(self) -> None:
        """Records the step over the first page, which must be free."""
        token_ids = torch.zeros(_NUM_RECORDED, dtype=torch.int64)
        positions = torch.zeros((3, _NUM_RECORDED), dtype=torch.int64)
        tables = torch.zeros((_NUM_RECORDED, _NUM_RECORDED), dtype=torch.int64)
        inputs = (token_ids, positions, token_ids, tables, token_ids + 1)
        with torch.inference_mode(), warnings.catch_warnings():
            # It is said to have no future, and still has no successor (see above).
            warnings.simplefilter("ignore", DeprecationWarning)
            self._step = torch.jit.trace(self._step, inputs, check_trace=False)  # type: ignore[no-untyped-call]
            for _ in range(_NUM_WARM_UP_STEPS):
                self._step(*inputs)

    def takes(self, chunks: Seq[Chunk]) -> bool:
        """Whether it is for such a step."""
        if any(chunk.start < chunk.sequence.prompt.num_tokens or chunk.num_new_tokens > 1 for chunk in chunks):
            return False
        nums_pages = [self._num_pages(chunk) for chunk in chunks]
        # Padding may double the work, as elsewhere, and not multiply it.
        return len(chunks) * max(nums_pages) <= 2 * sum(nums_pages)

    def logits(self, chunks: Seq[Chunk], token_ids: Seq[int]) -> Tensor:
        """Of the tokens after `token_ids`, one for each chunk: float32 [N, vocab]."""
        nums_pages = [self._num_pages(chunk) for chunk in chunks]
        # Padding reads page 0, which is masked.
        tables = np.zeros((len(chunks), max(nums_pages)), dtype=np.int64)
        for row, (chunk, num_pages) in enumerate(zip(chunks, nums_pages, strict=True)):
            tables[row, :num_pages] = chunk.block_table[:num_pages]
        logits: Tensor = self._step(
            torch.tensor(token_ids),
            torch.tensor([decode_position(chunk) for chunk in chunks]).T,
            torch.tensor([decode_slot(chunk, self._page_size) for chunk in chunks]),
            torch.from_numpy(tables),
            torch.tensor([chunk.end for chunk in chunks]),
        )
        return logits

    def _num_pages(self, chunk: Chunk) -> int:
        return -(-chunk.end // self._page_size)


class _DecodeStep(nn.Module):
    """One new token each of B sequences. token_ids, slots, num_tokens (with the new one): int64 [B]; positions [3, B];
    tables [B, num_pages]."""

    def __init__(self, model: LanguageModel, cache: PagedKvCache) -> None:
        super().__init__()
        self.model = model
        self._cache = cache

    def forward(
        self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor, num_tokens: Tensor
    ) -> Tensor:
        attention = decode_attention(self._cache, slots, tables, num_tokens)
        return self.model.logits(self.model(self.model.embed(token_ids), positions, attention))
