"""Sequence: one request inside the engine, from its prompt to its last token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm_service.answer_form import AnswerForm
from llm_service.kv_export import KvExport
from llm_service.prompt import Prompt
from triptych.sampling import SamplingParameters
from triptych.v1 import common_pb2

# Stands in `token_ids` for a token that a step in flight has yet to choose.
PENDING_TOKEN = -1
NO_LIMIT = 2**62


class FinishReason(IntEnum):
    """Why a sequence ended; the values are those of the proto."""

    STOP = common_pb2.FINISH_REASON_STOP
    LENGTH = common_pb2.FINISH_REASON_LENGTH
    ABORTED = common_pb2.FINISH_REASON_ABORTED


class SequenceState(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(frozen=True)
class EmbeddingSlice:
    """Rows [first_row, last_row) of a media embedding, to be laid over a chunk from its token `offset` on."""

    offset: int
    embedding: Tensor
    first_row: int
    last_row: int


@dataclass(eq=False)
class Sequence:
    """Owned by the engine thread once it was added. Compared and hashed by identity: a request id may come twice.

    embeddings: [length, hidden] for every media span, in order, each None until it has arrived (`Engine.supply`);
    None as a whole where they are not at hand because the prompt's KV pages come from a prefill actor: such a sequence,
    when preempted, is parked instead of recomputed.
    parked_pages: the KV pages of the computed tokens while the cache holds none,
    [num_pages, num_layers, 2, page_size, num_kv_heads, head_dim].
    """

    request_id: str
    prompt: Prompt
    sampling: SamplingParameters
    embeddings: Seq[Tensor | None] | None = ()
    is_prefill_only: bool = False
    # Other answers begin with the same pages: they are wanted even when the first token already ends this one.
    is_prompt_shared: bool = False
    # The parts in which its pages leave while the rest of it is computed; None: all leave with its first token.
    kv_export: KvExport | None = None
    # Which of the n answers of its request this is.
    choice_index: int = 0
    # Follows the tokens as they become known; the next token can be chosen only then.
    form: AnswerForm | None = None
    # Told on the engine's thread that so many tokens of the prompt, and the media among them, need not be computed.
    on_cached: Callable[[int], None] | None = None
    # Tokens at which it ends, whatever they are; known when it is added to an engine.
    token_limit: int = NO_LIMIT

    state: SequenceState = SequenceState.WAITING
    token_ids: list[int] = field(init=False)
    last_prompt_position: tuple[int, ...] = field(init=False)
    # Looked at in every step, so worked out once: is more asked for than greedy or plain temperature, and so many
    # tokens there must be before the next one may end the answer.
    is_special: bool = field(init=False)
    num_tokens_before_end: int = field(init=False)
    # Nothing is on its way any more; looked at in every step.
    _is_supplied: bool = field(init=False, default=False)
    # Embeddings of media among the computed tokens were never fetched.
    _lacks_computed: bool = field(init=False, default=False)
    # Both run ahead of the device: they count what steps in flight compute and choose.
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    parked_pages: Tensor | None = None
    page_hashes: list[bytes] = field(default_factory=list)
    num_cached_prompt_tokens: int = 0
    num_preemptions: int = 0
    # Monotonic clock, in seconds; 0 until it happened. To wait for a picture is not to wait in the queue: added_s is
    # when the first tokens could be computed.
    added_s: float = 0.0
    started_s: float = 0.0
    first_token_s: float = 0.0
    finished_s: float = 0.0
    # Seconds between the first chunk and the first token in which it had nothing to do but to wait for pictures.
    paused_s: float = 0.0
    _paused_since_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        assert self.embeddings is None or len(self.embeddings) == len(self.prompt.media)
        self.token_ids = list(self.prompt.token_ids)
        self.last_prompt_position = tuple(self.prompt.positions[:, -1].tolist())
        self.is_special = self.form is not None or self.sampling.is_special
        self.num_tokens_before_end = self.prompt.num_tokens + self.sampling.min_tokens

    def take_over(self, first_token_id: int, pages: Tensor) -> None:
        """The prompt was computed elsewhere: here are all its KV pages, and the token that follows it."""
        assert self.num_computed_tokens == 0 and self.num_generated_tokens == 0
        self.token_ids.append(first_token_id)
        self.num_computed_tokens = self.prompt.num_tokens
        self.parked_pages = pages
        if self.form is not None:
            self.form.accept(first_token_id)

    def take_over_prompt(self, pages: Tensor) -> None:
        """The same without a first token: it is chosen here, for which the last token of the prompt, which is text, is
        computed once more."""
        assert self.num_computed_tokens == 0 and self.num_generated_tokens == 0
        self.num_computed_tokens = self.prompt.num_tokens - 1
        self.parked_pages = pages

    def skip_cached(self) -> None:
        """Pages were found for the tokens that count as computed. Media among them that have not come are not waited
        for; when preempted, it is parked from now on."""
        if self.on_cached is None or self.embeddings is None or self.has_all_embeddings:
            return
        media = zip(self.prompt.media, self.embeddings, strict=True)
        if any(part is None and span.end <= self.num_computed_tokens for span, part in media):
            self._lacks_computed = True
            self.on_cached(self.num_computed_tokens)

    def pause(self) -> None:
        """It has nothing in flight and nothing to compute: the next picture is still to come."""
        self._paused_since_s = self._paused_since_s or time.monotonic()

    def pause_after(self, num_computed_tokens: int) -> None:
        """So many are computed now; a pause, until it can go on, where no more were launched."""
        if num_computed_tokens == self.num_computed_tokens:
            self.pause()

    def go_on(self) -> None:
        """There are tokens to compute, whether it paused or not."""
        if self._paused_since_s == 0.0:
            return
        paused_s = time.monotonic() - self._paused_since_s
        self._paused_since_s = 0.0
        if self.started_s == 0.0:
            self.added_s += paused_s
        else:
            self.paused_s += paused_s

    def expect_token(self) -> None:
        """A step was launched that chooses the next token."""
        self.token_ids.append(PENDING_TOKEN)
        self.num_pending_tokens += 1

    def receive_token(self, index: int, token_id: int) -> None:
        """The pending token at `index` of the sequence is known; pending ones are received in order."""
        assert self.token_ids[index] == PENDING_TOKEN
        self.token_ids[index] = token_id
        self.num_pending_tokens -= 1
        if self.form is not None:
            self.form.accept(token_id)

    def drop_pending(self) -> None:
        """The sequence ended with the last known token; what steps in flight add to it is not wanted."""
        if self.num_pending_tokens:
            del self.token_ids[-self.num_pending_tokens :]
            self.num_pending_tokens = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def is_complete(self) -> bool:
        """Nothing is to be computed any more, even if the last token is still pending."""
        return len(self.token_ids) >= self.token_limit

    @property
    def is_waiting_for_token(self) -> bool:
        """What may come next depends on a token that a step in flight has yet to choose."""
        return self.form is not None and self.num_pending_tokens > 0

    @property
    def output_token_ids(self) -> list[int]:
        """Those of the answer, with what earlier attempts generated of it; pending ones included."""
        return self.token_ids[self.prompt.num_tokens - self.prompt.num_generated :]

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.prompt.num_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_computable_tokens(self) -> int:
        """Uncomputed tokens in front of the first picture or video that is to be computed and has not arrived."""
        if self.has_all_embeddings:
            return len(self.token_ids) - self.num_computed_tokens
        return self._first_missing_token() - self.num_computed_tokens

    @property
    def has_all_embeddings(self) -> bool:
        """None of those that the prompt asks for is still to come."""
        if not self._is_supplied:
            self._is_supplied = self.embeddings is None or all(part is not None for part in self.embeddings)
        return self._is_supplied

    @property
    def can_recompute(self) -> bool:
        return self.embeddings is not None and not self._lacks_computed

    def positions(self, start: int, end: int) -> NDArray[np.int64]:
        """mRoPE positions [3, end - start] of the tokens [start, end).

        The answer goes on where the prompt's text ends, as in `generate` of transformers 5. (The position delta that
        other engines add starts behind the last moment of a video instead.) So an answer keeps its positions when it
        becomes part of a prompt: on another actor after a failure, or in the next turn.
        """
        num_prompt_tokens = self.prompt.num_tokens
        if end <= num_prompt_tokens:
            return self.prompt.positions[:, start:end]
        steps = np.arange(max(start - num_prompt_tokens, 0), end - num_prompt_tokens, dtype=np.int64) + 1
        answer = self.prompt.positions[:, -1:] + steps
        if start >= num_prompt_tokens:
            return answer
        return np.concatenate([self.prompt.positions[:, start:], answer], axis=1)

    def embedding_slices(self, start: int, end: int) -> Iterator[EmbeddingSlice]:
        """What the media spans lay over the tokens [start, end); offsets count from `start`."""
        if start >= self.prompt.num_tokens or not self.prompt.media:
            return
        for index, span in enumerate(self.prompt.media):
            first, last = max(start, span.offset), min(end, span.end)
            if first < last:
                embedding = None if self.embeddings is None else self.embeddings[index]
                assert embedding is not None, "media that were imported or are still to come are never computed here"
                yield EmbeddingSlice(first - start, embedding, first - span.offset, last - span.offset)

    def _first_missing_token(self) -> int:
        """Where the tokens end that can be computed; media among those computed already count as there."""
        assert self.embeddings is not None
        for span, embedding in zip(self.prompt.media, self.embeddings, strict=True):
            if embedding is None and span.end > self.num_computed_tokens:
                return max(span.offset, self.num_computed_tokens)
        return len(self.token_ids)
