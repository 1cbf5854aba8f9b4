"""ModelRunner: turns the chunks of a step into tensors, and those into tokens."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from llm_service.attention.base import PagedAttention, StepLayout
from llm_service.kv_cache import PagedKvCache
from llm_service.sampler import Sampler
from llm_service.scheduler import Chunk
from triptych.models.qwen2_5_vl.language import LanguageModel


class ModelRunner:
    """Runs the language model over the packed tokens of one step."""

    def __init__(self, model: LanguageModel, cache: PagedKvCache, attention: PagedAttention, sampler: Sampler) -> None:
        self.model = model
        self.cache = cache
        self.attention = attention
        self.sampler = sampler

    @torch.inference_mode()
    def run(self, chunks: Seq[Chunk]) -> list[int | None]:
        """Computes the chunks; the next token of those that reach their sequence's last token, None for the others."""
        attention = self.attention.plan(self._layout(chunks))
        hidden = self.model(self._embeddings(chunks), self._positions(chunks), attention)
        sampled = [chunk for chunk in chunks if chunk.is_sampled]
        if not sampled:
            return [None] * len(chunks)
        last_rows = np.cumsum([chunk.num_new_tokens for chunk in chunks]) - 1
        rows = [row for row, chunk in zip(last_rows.tolist(), chunks, strict=True) if chunk.is_sampled]
        logits = self.model.logits(hidden[torch.tensor(rows, device=hidden.device)])
        tokens = iter(self.sampler.sample(logits, [chunk.sequence for chunk in sampled]))
        return [next(tokens) if chunk.is_sampled else None for chunk in chunks]

    def _layout(self, chunks: Seq[Chunk]) -> StepLayout:
        return StepLayout(
            slots=torch.from_numpy(np.concatenate([self._slots(chunk) for chunk in chunks])).to(self.cache.device),
            num_new_tokens=[chunk.num_new_tokens for chunk in chunks],
            num_tokens=[chunk.end for chunk in chunks],
            block_tables=[chunk.block_table for chunk in chunks],
        )

    def _slots(self, chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        page_size = self.cache.page_size
        tokens = np.arange(chunk.start, chunk.end, dtype=np.int64)
        first_page = chunk.start // page_size
        pages = np.asarray(chunk.block_table[first_page : -(-chunk.end // page_size)], dtype=np.int64)
        return pages[tokens // page_size - first_page] * page_size + tokens % page_size

    def _positions(self, chunks: Seq[Chunk]) -> Tensor:
        """mRoPE positions [3, T]."""
        positions = [chunk.sequence.positions(chunk.start, chunk.end) for chunk in chunks]
        return torch.from_numpy(np.concatenate(positions, axis=1)).to(self.cache.device)

    def _embeddings(self, chunks: Seq[Chunk]) -> Tensor:
        """Token embeddings [T, hidden], with the tower's rows laid over the placeholders."""
        token_ids = [token for chunk in chunks for token in chunk.sequence.token_ids[chunk.start : chunk.end]]
        embeddings = self.model.embed(torch.tensor(token_ids, device=self.cache.device))
        first_row = 0
        for chunk in chunks:
            for part in chunk.sequence.embedding_slices(chunk.start, chunk.end):
                start = first_row + part.offset
                rows = part.embedding[part.first_row : part.last_row]
                embeddings[start : start + len(rows)] = rows.to(embeddings)
            first_row += chunk.num_new_tokens
        return embeddings
