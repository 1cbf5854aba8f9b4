"""Steps that were recorded once: the tokens of transformers, whatever the batch looks like."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest
from engine_helpers import CASES, MakeEngine, Model, SteppedEngine, answer, new_sequence
from torch import Tensor

from llm_service.model_runner import ModelRunner
from llm_service.scheduler import Chunk
from llm_service.step_trace import StepTrace


class CountingTrace(StepTrace):
    """Counts the calls for decodes, by their numbers of sequences."""

    def __init__(self, engine: SteppedEngine, model: Model) -> None:
        super().__init__(model.language, engine.cache)
        self.batches: list[int] = []

    def _decode_logits(self, chunks: Seq[Chunk], token_ids: Seq[Seq[int]]) -> Tensor:
        self.batches.append(len(chunks))
        return super()._decode_logits(chunks, token_ids)


def traced(engine: SteppedEngine, model: Model) -> CountingTrace:
    """The engine's steps go through a recording from now on."""
    runner = engine.runner
    assert isinstance(runner, ModelRunner)
    trace = CountingTrace(engine, model)
    engine.runner = ModelRunner(
        model.language, engine.cache, runner.attention, runner.sampler, runner.num_steps_ahead, trace=trace
    )
    engine.runner.prepare()
    return trace


@pytest.mark.parametrize("name", CASES)
def test_alone(model: Model, make_engine: MakeEngine, name: str) -> None:
    case, engine = model.case(name), make_engine()
    trace, sequence = traced(engine, model), new_sequence(case)
    engine.run([sequence])
    assert answer(sequence) == case.expected
    assert trace.batches == [1] * (len(case.expected) - 1)


@pytest.mark.parametrize("prefill_chunk_tokens", [1, 3, 1024])
def test_batches_that_grow_shrink_and_are_preempted(
    model: Model, make_engine: MakeEngine, prefill_chunk_tokens: int
) -> None:
    """Steps hold decodes and several chunks of prompts, of one token and more, some of which reach the last one."""
    engine = make_engine(page_size=4, num_pages=64, prefill_chunk_tokens=prefill_chunk_tokens)
    trace, sequences = traced(engine, model), [new_sequence(model.case(name)) for name in CASES]
    for sequence in sequences:
        engine.add(sequence)
        for _ in range(3):
            engine.step()
    engine.run()
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    assert [answer(sequence) for sequence in sequences] == [model.case(name).expected for name in CASES]
    assert len(set(trace.batches)) > 1


def test_far_shorter_ones_are_not_padded_to_the_longest(model: Model, make_engine: MakeEngine) -> None:
    """Three of one token beside one of many: two groups at first, one once they have come closer."""
    engine = make_engine(page_size=1)
    trace = traced(engine, model)
    by_length = sorted((model.case(name) for name in CASES), key=lambda case: case.prompt.num_tokens)
    shortest, longest = by_length[0], by_length[-1]
    cases = [shortest, shortest, shortest, longest]
    sequences = [new_sequence(case) for case in cases]
    engine.run(sequences)
    assert [answer(sequence) for sequence in sequences] == [case.expected for case in cases]
    assert 0 < trace.batches.count(4) < len(shortest.expected) - 1
