"""Penalties, biases and log probabilities are those of transformers, and survive whatever happens to a sequence."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import MakeEngine, Model, SteppedEngine, answer, greedy, new_sequence
from test_sampler import EOS, VOCAB_SIZE, random_logits
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from llm_service.prompt import Prompt
from llm_service.sampler import Sampler
from llm_service.sequence import Sequence
from triptych.sampling import SamplingParameters

NUM_TOKENS = 30
PENALTIES: dict[str, dict[str, float]] = {
    "repetition": {"repetition_penalty": 1.3},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.7},
    "all": {"repetition_penalty": 1.15, "presence_penalty": -0.4, "frequency_penalty": 0.6},
}


def penalized(logits: Tensor, prompt: list[int], generated: list[int], sampling: SamplingParameters) -> Tensor:
    """transformers' processor for repetition; the OpenAI API's formula for the others, written out."""
    processor = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
    scores = processor(torch.tensor([prompt + generated]), logits[None].clone())[0]
    for token in set(generated):
        scores[token] -= sampling.frequency_penalty * generated.count(token) + sampling.presence_penalty
    return scores


@torch.no_grad()
def expected_answer(model: Model, sampling: SamplingParameters, name: str = "text") -> tuple[list[int], list[Tensor]]:
    """Tokens that follow a text prompt, and the log probabilities [vocab] that each was chosen from."""
    prompt, generated, rows = list(model.case(name).prompt.token_ids), [], []
    for _ in range(NUM_TOKENS):
        logits = model.reference(input_ids=torch.tensor([prompt + generated])).logits[0, -1].float()
        rows.append(logits.log_softmax(-1))
        generated.append(int(penalized(logits, prompt, generated, sampling).argmax()))
    return generated, rows


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties_are_those_of_transformers(model: Model, make_engine: MakeEngine, kind: str) -> None:
    sampling = greedy(NUM_TOKENS, **PENALTIES[kind])
    expected, _ = expected_answer(model, sampling)
    assert tuple(expected) != model.case("text").expected[:NUM_TOKENS]
    sequence, mates = new_sequence(model.case("text"), sampling), [new_sequence(model.case("one image"))] * 1
    make_engine().run([mates[0], sequence])
    assert answer(sequence) == tuple(expected)
    assert answer(mates[0]) == model.case("one image").expected


def test_penalties_go_on_after_preemption_and_resume(model: Model, make_engine: MakeEngine) -> None:
    sampling = greedy(NUM_TOKENS, **PENALTIES["all"])
    expected, _ = expected_answer(model, sampling)
    tight = make_engine(num_pages=12)
    sequences = [new_sequence(model.case("text"), sampling) for _ in range(3)]
    tight.run(sequences)
    assert tight.scheduler.num_preemptions > 0
    assert [answer(sequence) for sequence in sequences] == [tuple(expected)] * 3
    for num_generated in (1, 7, 20):
        token_ids = (*model.case("text").prompt.token_ids, *expected[:num_generated])
        prompt = Prompt.build(token_ids, (), model.config, num_generated)
        resumed = Sequence("request", prompt, greedy(NUM_TOKENS - num_generated, **PENALTIES["all"]))
        make_engine().run([resumed])
        assert answer(resumed) == tuple(expected[num_generated:])


def test_a_step_that_failed_counts_nothing_twice(
    model: Model, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = greedy(NUM_TOKENS, **PENALTIES["all"])
    expected, _ = expected_answer(model, sampling)
    engine = make_engine()
    finish, num_calls = engine.runner.sampler.finish, 0  # type: ignore[attr-defined]

    def failing(*arguments: object) -> None:
        nonlocal num_calls
        num_calls += 1
        finish(*arguments)
        if num_calls in (4, 9):
            raise RuntimeError("after the tokens were counted")

    monkeypatch.setattr(engine.runner.sampler, "finish", failing)
    # With two in a step the failed one is taken apart and done again, one by one.
    sequences = [new_sequence(model.case("text"), sampling) for _ in range(2)]
    engine.run(sequences)
    assert [answer(sequence) for sequence in sequences] == [tuple(expected)] * 2


def test_logprobs_are_the_models_own(model: Model, make_engine: MakeEngine) -> None:
    """Whatever changes the choice: they are before temperature, penalties and biases."""
    changed = greedy(NUM_TOKENS, logprobs=5, logit_bias=((3, 4.0),), **PENALTIES["all"])
    plain, bare = greedy(NUM_TOKENS, logprobs=20), greedy(NUM_TOKENS, logprobs=0)
    engine = make_engine()
    sequences = [new_sequence(model.case("text"), sampling) for sampling in (changed, plain, bare)]
    engine.run([*sequences, new_sequence(model.case("one image"))])
    for sequence, num_top in zip(sequences, (5, 20, 0), strict=True):
        told = [output.logprob for output in engine.outputs if output.sequence is sequence]
        ids = torch.tensor([(*sequence.prompt.token_ids, *answer(sequence))])
        with torch.no_grad():
            rows = model.reference(input_ids=ids).logits[0, sequence.prompt.num_tokens - 1 : -1].float().log_softmax(-1)
        assert len(told) == len(rows) == NUM_TOKENS
        for token, row, logprob in zip(answer(sequence), rows, told, strict=True):
            assert logprob is not None and logprob.token_id == token
            assert logprob.logprob == pytest.approx(float(row[token]), abs=1e-4)
            values, top = row.topk(num_top)
            assert [entry[0] for entry in logprob.top] == top.tolist()
            assert [entry[1] for entry in logprob.top] == pytest.approx(values.tolist(), abs=1e-4)
    others = [output for output in engine.outputs if output.sequence not in sequences]
    assert others and all(output.logprob is None for output in others)


def test_rules_of_one_row_leave_the_others_alone() -> None:
    """Many rows with different wishes at once, against each by itself and against the formulas."""
    kinds: list[dict[str, object]] = [
        {},
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 1.0, "logit_bias": ((4, 9.0), (7, -100.0))},
        {"presence_penalty": 2.0, "min_tokens": 9},
        {"logit_bias": ((11, 100.0),)},
        {"repetition_penalty": 0.5, "presence_penalty": -2.0, "logprobs": 2},
    ]
    generator = torch.Generator().manual_seed(5)
    sequences, expected = [], []
    logits = random_logits(24)
    for row, values in zip(logits, kinds * 4, strict=True):
        prompt = torch.randint(0, VOCAB_SIZE, (6,), generator=generator).tolist()
        generated = torch.randint(0, VOCAB_SIZE, (8,), generator=generator).tolist()
        sampling = SamplingParameters(max_tokens=99, **values)  # type: ignore[arg-type]
        sequence = Sequence("request", Prompt(tuple(prompt), (), torch.zeros((3, 6)).long().numpy()), sampling)
        sequence.token_ids += generated
        sequences.append(sequence)
        biased = row.clone()
        for token, bias in sampling.logit_bias:
            biased[token] += bias
        if sampling.min_tokens:
            biased[EOS] = -torch.inf
        expected.append(int(penalized(biased, prompt, generated, sampling).argmax()))
    assert Sampler([EOS]).sample(logits.clone(), sequences) == expected
    alone = [Sampler([EOS]).sample(row[None].clone(), [s])[0] for row, s in zip(logits, sequences, strict=True)]
    assert alone == expected
    assert len(set(expected)) > 8


def test_counts_of_the_gone_make_room(model: Model, make_engine: MakeEngine) -> None:
    """A row of counts is used again when its sequence is gone, and begins anew."""
    engine, sampling = make_engine(), greedy(NUM_TOKENS, **PENALTIES["frequency"])
    expected, _ = expected_answer(model, sampling)
    for _ in range(6):
        assert _answer_of_new_sequence(engine, model, sampling) == tuple(expected)
        engine.outputs.clear()
    counts = engine.runner.sampler._counts._counts  # type: ignore[attr-defined]
    assert counts is not None and len(counts) <= 4


def _answer_of_new_sequence(engine: SteppedEngine, model: Model, sampling: SamplingParameters) -> tuple[int, ...]:
    sequence = new_sequence(model.case("text"), sampling)
    engine.run([sequence])
    return answer(sequence)
