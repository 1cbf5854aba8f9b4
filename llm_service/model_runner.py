"""ModelRunner: turns the chunks of a step into tensors, and those into tokens. Plain torch, for any device."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_service.attention.base import PagedAttention, StepLayout
from llm_service.attention.watched import WatchedAttention
from llm_service.kv_cache import PagedKvCache
from llm_service.logprobs import StepLogprobs, TokenLogprob
from llm_service.runner import LayerWatch
from llm_service.sampler import Sampler
from llm_service.scheduler import Chunk
from llm_service.sequence import PENDING_TOKEN, Sequence
from llm_service.step_inputs import lay_over_media, slots_of
from llm_service.step_trace import StepTrace
from triptych.models.qwen2_5_vl.language import LanguageModel


@dataclass(frozen=True)
class ComputedStep:
    """A step that was over when its launch returned."""

    chunks: list[Chunk]
    tokens: list[int | None]
    step_logprobs: StepLogprobs | None

    def read(self) -> list[int | None]:
        return self.tokens

    def logprobs(self) -> dict[Sequence, TokenLogprob]:
        return self.step_logprobs.read() if self.step_logprobs is not None else {}


class ModelRunner:
    """Runs the language model over the packed tokens of one step, and returns when they are computed."""

    def __init__(
        self,
        model: LanguageModel,
        cache: PagedKvCache,
        attention: PagedAttention,
        sampler: Sampler,
        num_steps_ahead: int = 0,
        trace: StepTrace | None = None,
    ) -> None:
        """trace: for all steps that nobody watches."""
        self.model = model
        self.cache = cache
        self.attention = attention
        self.sampler = sampler
        self.num_steps_ahead = num_steps_ahead
        self._trace = trace
        self._last_tokens: dict[Sequence, int] = {}

    def prepare(self) -> None:
        """Records steps, where that is wanted."""
        if self._trace is not None:
            self._trace.prepare()

    @torch.inference_mode()
    def launch(self, chunks: list[Chunk], watch: LayerWatch | None = None) -> ComputedStep:
        """Computes the chunks."""
        sampled = [chunk.sequence for chunk in chunks if chunk.is_sampled]
        token_ids = [self._token_ids(chunk) for chunk in chunks]
        if self._trace is not None and watch is None:
            logits = self._trace.logits(chunks, token_ids)
        else:
            logits = self.model.logits(self._hidden(chunks, token_ids, watch))
        tokens = self.sampler.sample(logits, sampled) if sampled else []
        self._last_tokens = dict(zip(sampled, tokens, strict=True))
        return ComputedStep(
            chunks,
            [self._last_tokens[chunk.sequence] if chunk.is_sampled else None for chunk in chunks],
            self.sampler.take_logprobs(),
        )

    def _hidden(self, chunks: Seq[Chunk], token_ids: Seq[Seq[int]], watch: LayerWatch | None) -> Tensor:
        """Computes the chunks call by call: the hidden state of the last token of each that is sampled."""
        attention = self.attention.plan(self._layout(chunks))
        if watch is not None:
            attention = WatchedAttention(attention, watch)
        hidden: Tensor = self.model(self._embeddings(chunks, token_ids), self._positions(chunks), attention)
        last_rows = np.cumsum([chunk.num_new_tokens for chunk in chunks]) - 1
        rows = [row for row, chunk in zip(last_rows.tolist(), chunks, strict=True) if chunk.is_sampled]
        return hidden[torch.tensor(rows, dtype=torch.int64, device=hidden.device)]

    def _layout(self, chunks: Seq[Chunk]) -> StepLayout:
        return StepLayout(
            slots=np.concatenate([slots_of(chunk, self.cache.page_size) for chunk in chunks]),
            num_new_tokens=[chunk.num_new_tokens for chunk in chunks],
            num_tokens=[chunk.end for chunk in chunks],
            block_tables=[chunk.block_table for chunk in chunks],
        )

    def _positions(self, chunks: Seq[Chunk]) -> Tensor:
        """mRoPE positions [3, T]."""
        positions = [chunk.sequence.positions(chunk.start, chunk.end) for chunk in chunks]
        return torch.from_numpy(np.concatenate(positions, axis=1)).to(self.cache.device)

    def _embeddings(self, chunks: Seq[Chunk], token_ids: Seq[Seq[int]]) -> Tensor:
        """Token embeddings [T, hidden], with the tower's rows laid over the placeholders."""
        packed = [token for of_chunk in token_ids for token in of_chunk]
        embeddings = self.model.embed(torch.tensor(packed, device=self.cache.device))
        first_row = 0
        for chunk in chunks:
            lay_over_media(embeddings, chunk, first_row)
            first_row += chunk.num_new_tokens
        return embeddings

    def _token_ids(self, chunk: Chunk) -> list[int]:
        token_ids = chunk.sequence.token_ids[chunk.start : chunk.end]
        if token_ids[-1] == PENDING_TOKEN:
            token_ids[-1] = self._last_tokens[chunk.sequence]
        return token_ids
