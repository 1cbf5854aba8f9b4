"""Prompts that are computed while their pictures still come: the tokens of transformers, whatever comes when."""

from __future__ import annotations

import time
from random import Random

import pytest
from engine_helpers import (
    CASES,
    NUM_NEW_TOKENS,
    Case,
    MakeEngine,
    Model,
    SteppedEngine,
    answer,
    greedy,
    new_sequence,
)
from torch import Tensor

from llm_service.embeddings import Embeddings
from llm_service.results import PrefillResult
from llm_service.sequence import Sequence, SequenceState
from triptych.sampling import SamplingParameters

NAME = "video between images"


def arriving(case: Case, sampling: SamplingParameters | None = None) -> tuple[Sequence, list[Tensor | None]]:
    """A sequence none of whose embeddings has come, and where they are to be put."""
    embeddings: list[Tensor | None] = [None] * len(case.prompt.media)
    return Sequence("request", case.prompt, sampling or greedy(), embeddings=embeddings), embeddings


def settle(engine: SteppedEngine) -> None:
    for _ in range(100):
        engine.step()
        if engine.scheduler.is_starved or not engine.scheduler.has_work:
            return
    raise AssertionError("the engine neither ends nor waits")


def test_computes_up_to_the_first_picture_that_is_missing(model: Model, make_engine: MakeEngine) -> None:
    case, engine = model.case(NAME), make_engine(overlap_min_tokens=1)
    first, second, third = case.prompt.media
    sequence, embeddings = arriving(case)
    engine.add(sequence)
    computed = []
    for arrived in ((), (1,), (0,), (2,)):
        for index in arrived:
            engine.supply(embeddings, index, case.embeddings[index])
        settle(engine)
        computed.append(min(sequence.num_computed_tokens, case.prompt.num_tokens))
    assert computed == [first.offset, first.offset, third.offset, case.prompt.num_tokens]
    assert second.end < third.offset
    engine.run()
    assert answer(sequence) == case.expected
    assert engine.pool.num_held_pages == 0


@pytest.mark.parametrize("min_tokens", [6, 7])
def test_few_tokens_before_a_missing_picture_wait_for_it(
    model: Model, make_engine: MakeEngine, min_tokens: int
) -> None:
    case, engine = model.case("one image"), make_engine(overlap_min_tokens=min_tokens)
    sequence, embeddings = arriving(case)
    assert case.prompt.media[0].offset == 6
    engine.add(sequence)
    settle(engine)
    assert sequence.num_computed_tokens == (6 if min_tokens == 6 else 0)
    engine.supply(embeddings, 0, case.embeddings[0])
    engine.run()
    assert answer(sequence) == case.expected


@pytest.mark.parametrize("seed", range(8))
def test_any_order_and_any_moment_among_others(model: Model, make_engine: MakeEngine, seed: int) -> None:
    """Also with chunks that end within pictures, and with so few pages that prompts push each other out."""
    random = Random(seed)
    engine = make_engine(
        overlap_min_tokens=random.choice([1, 9]),
        prefill_chunk_tokens=random.choice([5, 1024]),
        page_size=4,
        num_pages=70,
    )
    waiting = []
    sequences = []
    for name in random.sample(list(CASES), len(CASES)):
        sequence, embeddings = arriving(model.case(name))
        engine.add(sequence)
        sequences.append((sequence, model.case(name)))
        waiting += [(embeddings, index, tensor) for index, tensor in enumerate(model.case(name).embeddings)]
    random.shuffle(waiting)
    while waiting:
        for _ in range(random.randrange(4)):
            engine.step()
        engine.supply(*waiting.pop())
    engine.run()
    for sequence, case in sequences:
        assert answer(sequence) == case.expected
    assert engine.scheduler.num_preemptions > 0
    assert engine.pool.num_held_pages == 0


def test_pages_in_the_prefix_cache_need_no_picture(model: Model, make_engine: MakeEngine) -> None:
    case, engine = model.case(NAME), make_engine(page_size=1)
    engine.run([new_sequence(case)])
    sequence, _ = arriving(case)
    engine.run([sequence])
    assert answer(sequence) == case.expected
    assert sequence.num_cached_prompt_tokens == case.prompt.num_tokens - 1


@pytest.mark.parametrize("computed_meanwhile", [False, True])
def test_preempted_with_pictures_that_were_skipped(
    model: Model, make_engine: MakeEngine, computed_meanwhile: bool
) -> None:
    """It is parked, for those pictures never come; others may have computed more of its prompt by then."""
    case, text = model.case(NAME), model.case("text")
    engine = make_engine(page_size=1, num_pages=case.prompt.num_tokens + NUM_NEW_TOKENS + 1, overlap_min_tokens=1)
    earlier, embeddings = arriving(case, greedy(1))
    for index in (0, 1):
        engine.supply(embeddings, index, case.embeddings[index])
    engine.add(earlier)
    settle(engine)
    engine.abort(earlier)
    skipped: list[int] = []
    sequence, embeddings = arriving(case)
    sequence.on_cached = skipped.append
    decoding = new_sequence(text)
    for added in (decoding, sequence):
        engine.add(added)
        engine.step()
    assert skipped == [case.prompt.media[2].offset]
    assert not sequence.can_recompute
    while decoding.state is not SequenceState.FINISHED:
        engine.step()
    assert sequence.num_preemptions == 1 and sequence.num_cached_prompt_tokens == skipped[0]
    if computed_meanwhile:
        engine.abort(sequence)
        engine.step()
        sequence, embeddings = arriving(case)
        sequence.on_cached, skipped[:] = skipped.append, []
        engine.add(sequence)
        engine.step()
        assert skipped
        engine.scheduler._preempt(sequence)
        engine.scheduler.waiting.remove(sequence)
        engine.run([new_sequence(case, greedy(1))])
        engine.add(sequence)
        engine.step()
        assert sequence.num_computed_tokens >= case.prompt.num_tokens - 1
    engine.supply(embeddings, 2, case.embeddings[2])
    engine.run()
    assert answer(sequence) == case.expected
    assert engine.pool.num_held_pages == 0


def test_preempted_while_it_waits(model: Model, make_engine: MakeEngine) -> None:
    """What was found in the prefix cache is gone then, and its pictures have to come after all."""
    case, text = model.case("two images"), model.case("text")
    engine = make_engine(page_size=1, num_pages=case.prompt.num_tokens + NUM_NEW_TOKENS + 1, overlap_min_tokens=1)
    decoding = new_sequence(text)
    engine.add(decoding)
    engine.step()
    sequence, embeddings = arriving(case)
    engine.add(sequence)
    engine.supply(embeddings, 0, case.embeddings[0])
    for _ in range(80):
        engine.step()
    assert sequence.num_preemptions > 0
    assert answer(decoding) == text.expected, "a prompt that waits for its pictures holds up nobody"
    engine.supply(embeddings, 1, case.embeddings[1])
    engine.run()
    assert answer(sequence) == case.expected
    assert engine.pool.num_held_pages == 0


def test_aborted_while_it_waits(model: Model, make_engine: MakeEngine) -> None:
    case, engine = model.case("two images"), make_engine(overlap_min_tokens=1)
    sequence, embeddings = arriving(case)
    engine.add(sequence)
    engine.supply(embeddings, 0, case.embeddings[0])
    settle(engine)
    assert engine.pool.num_held_pages > 0
    engine.abort(sequence)
    engine.supply(embeddings, 1, case.embeddings[1])
    engine.run()
    assert sequence.state is SequenceState.FINISHED
    assert engine.pool.num_held_pages == 0


def test_prompts_that_wait_do_not_keep_others_out(model: Model, make_engine: MakeEngine) -> None:
    """The tokens that a step may have are not used up by those that can't be computed yet."""
    case, text = model.case(NAME), model.case("text")
    engine = make_engine(max_step_tokens=case.prompt.num_tokens, prefill_chunk_tokens=16)
    waiting = [arriving(case)[0] for _ in range(4)]
    for sequence in waiting:
        engine.add(sequence)
    engine.step()
    sequence = new_sequence(text)
    engine.add(sequence)
    for _ in range(80):
        engine.step()
    assert answer(sequence) == text.expected
    for sequence in waiting:
        engine.abort(sequence)
    engine.run()


def test_an_engine_whose_prompts_wait_sleeps(model: Model, make_engine: MakeEngine) -> None:
    case, engine = model.case("one image"), make_engine()
    num_schedules = 0
    schedule = engine.scheduler.schedule

    def counted() -> list:  # type: ignore[type-arg]
        nonlocal num_schedules
        num_schedules += 1
        return schedule()

    engine.scheduler.schedule = counted  # type: ignore[method-assign]
    engine.start()
    sequence, embeddings = arriving(case)
    engine.add(sequence)
    while not engine.scheduler.is_starved:
        time.sleep(0.001)
    time.sleep(0.05)
    assert num_schedules < 5
    engine.supply(embeddings, 0, case.embeddings[0])
    while sequence.state is not SequenceState.FINISHED:
        time.sleep(0.001)
    engine.stop()
    assert answer(sequence) == case.expected


def test_time_that_waits_for_pictures_is_neither_queue_nor_prefill(model: Model, make_engine: MakeEngine) -> None:
    case = model.case("two images")
    for min_tokens in (1, 256):
        engine = make_engine(overlap_min_tokens=min_tokens)
        sequence, embeddings = arriving(case, greedy(1))
        engine.add(sequence)
        for index in (0, 1):
            settle(engine)
            time.sleep(0.05)
            engine.supply(embeddings, index, case.embeddings[index])
        engine.run()
        waited_s = 0.1 if min_tokens == 1 else 0.0
        assert sequence.paused_s >= waited_s and (sequence.paused_s == 0.0) == (waited_s == 0.0)
        # Added before the first pause, first token after the second.
        result = PrefillResult.of(sequence, Embeddings(), None)
        assert result.queue_s >= 0 and result.prefill_s >= 0
        spent_s = sequence.first_token_s - sequence.added_s
        assert spent_s == pytest.approx(result.queue_s + result.prefill_s + sequence.paused_s)


def test_a_prompt_whose_pictures_are_here_never_pauses(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(prefill_chunk_tokens=8)
    sequence = new_sequence(model.case("two images"))
    engine.run([sequence])
    assert sequence.paused_s == 0.0
