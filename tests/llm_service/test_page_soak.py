"""Ten thousand steps of the real engine, scheduler and pool over a runner that writes, for every token, what it may be
known by: no page is leaked, shared wrongly, or read before it was written, whatever comes in which order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from engine_helpers import CPU
from numpy.typing import NDArray
from torch import Tensor

from llm_service.engine import Engine, StepOutput
from llm_service.kv_cache import PagedKvCache, PageShape
from llm_service.logprobs import TokenLogprob
from llm_service.page_pool import PagePool
from llm_service.prompt import Prompt
from llm_service.runner import LayerWatch
from llm_service.sampler import Sampler
from llm_service.scheduler import Chunk, Scheduler
from llm_service.sequence import PENDING_TOKEN, FinishReason, Sequence, SequenceState
from triptych.config import LanguageSection
from triptych.errors import InternalError
from triptych.sampling import SamplingParameters

# Of both loops together.
NUM_STEPS = 10_000
PAGE_SIZE, NUM_PAGES, MAX_SEQUENCE_TOKENS = 4, 22, 60
SHAPE = PageShape(num_layers=1, page_size=PAGE_SIZE, num_kv_heads=1, head_dim=1, dtype=torch.float32)
STOP = 3
# Float32 holds tags below this exactly.
MODULUS = 16_777_213


def tags_of(token_ids: list[int]) -> list[int]:
    """What each token's key and value are: a number that depends on it and on all before it."""
    tags, tag = [], 1
    for token in token_ids:
        tag = (tag * 31 + token + 7) % MODULUS
        tags.append(tag)
    return tags


def next_token(tag: int) -> int:
    return STOP if tag % 23 == 0 else tag % 3


def with_known(token_ids: list[int]) -> list[int]:
    """Pending tokens replaced by those that will be chosen."""
    known: list[int] = []
    tag = 1
    for token in token_ids:
        known.append(next_token(tag) if token == PENDING_TOKEN else token)
        tag = (tag * 31 + known[-1] + 7) % MODULUS
    return known


@dataclass(frozen=True)
class TaggedStep:
    chunks: list[Chunk]
    tokens: list[int | None]

    def read(self) -> list[int | None]:
        return self.tokens

    def logprobs(self) -> Mapping[Sequence, TokenLogprob]:
        return {}


class TaggingRunner:
    """Computes in the order of its launches, as a device does; some launches fail before they change anything."""

    def __init__(self, cache: PagedKvCache, num_steps_ahead: int, generator: random.Random) -> None:
        self.num_steps_ahead = num_steps_ahead
        self.sampler = Sampler([STOP])
        self._slots: NDArray[np.float32] = cache.tensor.view(2, -1).numpy()
        self._generator = generator

    def prepare(self) -> None: ...

    def launch(self, chunks: list[Chunk], watch: LayerWatch | None = None) -> TaggedStep:
        if self._generator.random() < 0.005:
            raise RuntimeError("a launch failed")
        return TaggedStep(chunks, [self._compute(chunk) for chunk in chunks])

    def _compute(self, chunk: Chunk) -> int | None:
        tags = tags_of(with_known(chunk.sequence.token_ids[: chunk.end]))
        tokens = np.arange(chunk.end)
        slots = np.array(chunk.block_table, dtype=np.int64)[tokens // PAGE_SIZE] * PAGE_SIZE + tokens % PAGE_SIZE
        context = self._slots[:, slots[: chunk.start]]
        assert (context == np.array(tags[: chunk.start], dtype=np.float32)).all(), "a page holds something else"
        self._slots[:, slots[chunk.start :]] = tags[chunk.start :]
        return next_token(tags[-1]) if chunk.is_sampled else None


class SoakedEngine(Engine):
    """Stepped by hand."""

    def _drain_inbox(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()


class Soak:
    """Requests of few distinct tokens, so that they share prefixes: plain ones, prefills for others, and answers to
    prompts that were computed elsewhere."""

    def __init__(self, seed: int, num_steps_ahead: int) -> None:
        self.generator = random.Random(seed)
        section = LanguageSection.model_validate(
            {"max_running_requests": 6, "max_step_tokens": 32, "prefill_chunk_tokens": 12, "mixed_prefill_tokens": 9}
        )
        cache = PagedKvCache(SHAPE, NUM_PAGES, CPU)
        self.pool = PagePool(NUM_PAGES, PAGE_SIZE)
        self.outputs: list[StepOutput] = []
        runner = TaggingRunner(cache, num_steps_ahead, self.generator)
        self.engine = SoakedEngine(
            Scheduler(section, self.pool, cache), runner, MAX_SEQUENCE_TOKENS, self.outputs.extend
        )
        self.alive: list[Sequence] = []
        self.endings: dict[str, int] = {}

    def step(self) -> None:
        self.engine._publish(self.engine._step())
        self.pool.check()
        for output in self.outputs:
            if output.is_last:
                self._check_end(output)
                self.alive.remove(output.sequence)
        self.outputs.clear()

    def add(self) -> None:
        token_ids = [index % 2 for index in range(self.generator.randint(1, 30))]
        token_ids[-1] = self.generator.randint(0, 2)
        positions = np.broadcast_to(np.arange(len(token_ids)), (3, len(token_ids)))
        kind = self.generator.choice(["plain", "plain", "prefill", "taken over"])
        sequence = Sequence(
            kind,
            Prompt(tuple(token_ids), (), positions),
            # The first token of a prompt that was computed elsewhere came with it: one that ends there stays there.
            SamplingParameters(max_tokens=self.generator.randint(2 if kind == "taken over" else 1, 25)),
            embeddings=None if kind == "taken over" else (),
            is_prefill_only=kind == "prefill",
        )
        if kind == "taken over":
            sequence.take_over(next_token(tags_of(token_ids)[-1]), pages_of(token_ids))
        self.alive.append(sequence)
        self.engine.add(sequence)

    def abort(self) -> None:
        if self.alive:
            sequence = self.alive.pop(self.generator.randrange(len(self.alive)))
            self.engine.abort(sequence)

    def _check_end(self, output: StepOutput) -> None:
        sequence = output.sequence
        assert sequence.state is SequenceState.FINISHED
        prompt = list(sequence.prompt.token_ids)
        if output.error is not None:
            assert isinstance(output.error, InternalError), output.error
            return self._count("failed")
        assert sequence.token_ids == with_known(prompt + [PENDING_TOKEN] * sequence.num_generated_tokens)
        if output.kv_pages is not None:
            assert torch.equal(output.kv_pages, pages_of(prompt))
            return self._count("handed over")
        assert output.finish_reason is not None
        return self._count(FinishReason(output.finish_reason).name)

    def _count(self, ending: str) -> None:
        self.endings[ending] = self.endings.get(ending, 0) + 1


def pages_of(token_ids: list[int]) -> Tensor:
    """The pages of a prompt that was computed elsewhere."""
    num_pages = -(-len(token_ids) // PAGE_SIZE)
    slots = torch.zeros(num_pages * PAGE_SIZE)
    slots[: len(token_ids)] = torch.tensor(tags_of(token_ids), dtype=torch.float32)
    return slots.view(num_pages, 1, 1, PAGE_SIZE, 1, 1).expand(-1, -1, 2, -1, -1, -1).contiguous()


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_no_page_is_lost_in_ten_thousand_steps(num_steps_ahead: int) -> None:
    soak = Soak(seed=num_steps_ahead, num_steps_ahead=num_steps_ahead)
    for _ in range(NUM_STEPS // 2):
        # Bursts and lulls: the pool runs full, and empties again.
        if len(soak.alive) < 12 and soak.generator.random() < 0.35:
            for _ in range(soak.generator.randint(1, 3)):
                soak.add()
        if soak.generator.random() < 0.03:
            soak.abort()
        soak.step()
    for _ in range(2_000):
        if not soak.alive:
            break
        soak.step()
    soak.step()
    assert not soak.alive
    assert soak.pool.num_held_pages == 0
    assert soak.pool.num_available_pages == NUM_PAGES
    assert soak.engine.scheduler.num_preemptions > 20
    assert soak.engine.counters.num_cached_prompt_tokens > 1_000
    assert min(soak.endings.get(ending, 0) for ending in ("STOP", "LENGTH", "handed over", "failed")) > 0
