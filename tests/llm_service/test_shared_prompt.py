"""Answers to one prompt share its pages, whoever computed them, and are those of single requests."""

from __future__ import annotations

import pytest
from engine_helpers import MakeEngine, Model, answer, greedy, new_sequence

from llm_service.sequence import FinishReason, Sequence
from triptych.sampling import SamplingParameters

NUM_CHOICES = 4


def choices_of(model: Model, name: str, sampling: SamplingParameters, **values: object) -> list[Sequence]:
    case = model.case(name)
    return [
        Sequence("request", case.prompt, sampling.of_choice(index), choice_index=index, **values)  # type: ignore[arg-type]
        for index in range(NUM_CHOICES)
    ]


@pytest.mark.parametrize("name", ["text", "one image", "one token"])
def test_pages_of_elsewhere_are_held_once(model: Model, make_engine: MakeEngine, name: str) -> None:
    """The first brings the first token, the others compute theirs from the last token of the prompt."""
    case, sampling = model.case(name), SamplingParameters(20, temperature=2.0, seed=5, ignore_eos=True)
    singles = [new_sequence(case, sampling.of_choice(index)) for index in range(NUM_CHOICES)]
    make_engine().run(singles)
    assert len({answer(single) for single in singles}) == NUM_CHOICES

    prefill, decode = make_engine(), make_engine()
    prompt = new_sequence(case, sampling, is_prefill_only=True)
    prefill.run([prompt])
    pages = prefill.last_output(prompt).kv_pages
    assert pages is not None
    first, *others = sequences = choices_of(model, name, sampling, embeddings=None if case.prompt.media else ())
    first.take_over(answer(prompt)[0], pages)
    for sequence in others:
        sequence.take_over_prompt(pages)
    for sequence in sequences:
        decode.add(sequence)
    decode.step()
    num_full = (case.prompt.num_tokens - 1) // 8
    num_own = [len(decode.pool.table(sequence)) - num_full for sequence in sequences]
    assert decode.pool.num_held_pages == num_full + sum(num_own)
    decode.run()
    assert [answer(sequence) for sequence in sequences] == [answer(single) for single in singles]
    assert decode.pool.num_held_pages == 0


def test_pages_stay_wanted_when_the_first_token_is_the_last(model: Model, make_engine: MakeEngine) -> None:
    case, engine = model.case("text"), make_engine()
    stop = greedy(5, stop_token_ids=(case.expected[0],))
    alone = new_sequence(case, stop, is_prefill_only=True)
    shared = new_sequence(case, stop, is_prefill_only=True, is_prompt_shared=True)
    engine.run([alone, shared])
    assert engine.last_output(alone).finish_reason is FinishReason.STOP
    assert engine.last_output(alone).kv_pages is None
    assert engine.last_output(shared).finish_reason is FinishReason.STOP
    assert engine.last_output(shared).kv_pages is not None


def test_a_shared_prompt_is_preempted_and_goes_on(model: Model, make_engine: MakeEngine) -> None:
    """With media whose embeddings are not at hand nothing can be computed anew: pages are parked."""
    case, sampling = model.case("one image"), greedy(40)
    prefill, decode = make_engine(), make_engine(num_pages=12)
    prompt = new_sequence(case, sampling, is_prefill_only=True)
    prefill.run([prompt])
    pages = prefill.last_output(prompt).kv_pages
    assert pages is not None
    first, *others = sequences = choices_of(model, "one image", sampling, embeddings=None)
    first.take_over(answer(prompt)[0], pages)
    for sequence in others:
        sequence.take_over_prompt(pages)
    decode.run(sequences)
    assert decode.scheduler.num_preemptions > 0
    assert [answer(sequence) for sequence in sequences] == [case.expected[:40]] * NUM_CHOICES
