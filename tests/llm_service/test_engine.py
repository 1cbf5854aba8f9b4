"""How sequences end, what an abort leaves behind, and that one bad request is one bad request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from engine_helpers import CASES, MakeEngine, Model, SteppedEngine, answer, greedy, new_sequence
from tiny_qwen import EOS

from llm_service.engine import StepOutput
from llm_service.scheduler import Chunk
from llm_service.sequence import FinishReason, Sequence, SequenceState
from triptych.errors import InternalError, Unavailable


def test_max_tokens(model: Model, make_engine: MakeEngine) -> None:
    engine, sequence = make_engine(), new_sequence(model.case("text"), greedy(5))
    engine.run([sequence])
    assert engine.last_output(sequence).finish_reason is FinishReason.LENGTH
    assert answer(sequence) == model.case("text").expected[:5]


def test_stop_token_ends_and_is_told(model: Model, make_engine: MakeEngine) -> None:
    expected = model.case("text").expected
    stop = next(token for index, token in enumerate(expected) if index >= 4 and token not in expected[:index])
    length = expected.index(stop) + 1
    engine, sequence = make_engine(), new_sequence(model.case("text"), greedy(stop_token_ids=(stop,)))
    engine.run([sequence])
    assert engine.last_output(sequence).finish_reason is FinishReason.STOP
    assert answer(sequence) == expected[:length]


def test_end_of_sequence_and_min_tokens(model: Model, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the end-of-sequence token is always the likeliest, an answer is as long as min_tokens and that token."""
    true_logits = model.language.logits

    def logits_for_eos(hidden: torch.Tensor) -> torch.Tensor:
        logits = true_logits(hidden)
        logits[:, EOS] = logits.amax(-1) + 1
        return logits

    monkeypatch.setattr(model.language, "logits", logits_for_eos)
    engine = make_engine()
    ends = new_sequence(model.case("text"), greedy(20, ignore_eos=False))
    waits = new_sequence(model.case("text"), greedy(20, ignore_eos=False, min_tokens=7))
    ignores = new_sequence(model.case("text"), greedy(20))
    engine.run([ends, waits, ignores])
    assert answer(ends) == (EOS,)
    assert len(answer(waits)) == 8
    assert EOS not in answer(waits)[:7]
    assert [engine.last_output(sequence).finish_reason for sequence in (ends, waits)] == [FinishReason.STOP] * 2
    assert answer(ignores) == (EOS,) * 20


def test_context_length_ends_an_answer(model: Model, make_engine: MakeEngine) -> None:
    engine, sequence = make_engine(max_sequence_tokens=45), new_sequence(model.case("text"))
    engine.run([sequence])
    assert engine.last_output(sequence).finish_reason is FinishReason.LENGTH
    assert sequence.num_tokens == 45


def test_a_sequence_may_fill_the_whole_cache(model: Model, make_engine: MakeEngine) -> None:
    engine, sequence = make_engine(max_sequence_tokens=64, num_pages=8), new_sequence(model.case("text"))
    engine.run([sequence])
    assert sequence.num_tokens == 64
    assert engine.pool.num_held_pages == 0


def test_prefill_only_ends_with_pages_or_with_a_reason(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine()
    goes_on = new_sequence(model.case("video"), is_prefill_only=True)
    ends = new_sequence(model.case("video"), greedy(1), is_prefill_only=True)
    engine.run([goes_on, ends])
    assert engine.last_output(goes_on).kv_pages is not None
    assert engine.last_output(goes_on).finish_reason is None
    assert engine.last_output(ends).kv_pages is None
    assert engine.last_output(ends).finish_reason is FinishReason.LENGTH
    assert engine.pool.num_held_pages == 0
    assert engine.pool.num_cached_pages > 0


@pytest.mark.parametrize("num_steps", [0, 1, 3, 8, 30])
def test_abort_in_every_state_frees_everything(model: Model, make_engine: MakeEngine, num_steps: int) -> None:
    """Waiting, in the middle of a prompt, decoding, preempted: after the abort nothing is held and others go on."""
    engine = make_engine(num_pages=18, prefill_chunk_tokens=8, max_running_requests=3, max_step_tokens=16)
    sequences = [new_sequence(model.case(name)) for name in CASES]
    survivor = sequences[1]
    for sequence in sequences:
        engine.add(sequence)
    for _ in range(num_steps):
        engine.step()
    for sequence in sequences:
        if sequence is not survivor:
            engine.abort(sequence)
            engine.abort(sequence)
    engine.run()
    assert answer(survivor) == model.case("one token").expected
    assert engine.pool.num_held_pages == 0
    assert all(sequence.state is SequenceState.FINISHED for sequence in sequences)


def test_one_failing_request_takes_no_other_with_it(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine()
    good = [new_sequence(model.case(name), greedy(12)) for name in ("text", "two images")]
    bad = new_sequence(model.case("one image"), greedy(12))
    bad.embeddings = (torch.zeros(6, 47),)  # a width that no embedding has
    engine.run([good[0], bad, good[1]])
    output = engine.last_output(bad)
    assert isinstance(output.error, InternalError)
    assert answer(good[0]) == model.case("text").expected[:12]
    assert answer(good[1]) == model.case("two images").expected[:12]
    assert engine.pool.num_held_pages == 0


def test_pages_that_can_not_be_exported_end_their_request_only(
    model: Model, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    exported = new_sequence(model.case("one image"), is_prefill_only=True)
    other = new_sequence(model.case("text"), greedy(1))

    def fail(*arguments: object) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(engine.cache, "hand_over_pages", fail)
    engine.run([exported, other])
    assert isinstance(engine.last_output(exported).error, InternalError)
    assert engine.last_output(other).finish_reason is FinishReason.LENGTH
    assert engine.pool.num_held_pages == 0


def test_bookkeeping_that_fails_ends_what_is_inside_only(
    model: Model, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, first, second = make_engine(), new_sequence(model.case("text")), new_sequence(model.case("text"))
    with monkeypatch.context() as patch:

        def fail(chunk: Chunk) -> None:
            raise RuntimeError("broken")

        patch.setattr(engine.scheduler, "advance", fail)
        engine.run([first])
    assert isinstance(engine.last_output(first).error, InternalError)
    engine.run([second])
    assert answer(second) == model.case("text").expected


@pytest.fixture
def threaded(make_engine: MakeEngine) -> Iterator[tuple[SteppedEngine, list[StepOutput], threading.Event]]:
    """An engine on its own thread, with an event for each published step."""
    engine = make_engine()
    outputs: list[StepOutput] = []
    published = threading.Event()

    def publish(step: list[StepOutput]) -> None:
        outputs.extend(step)
        published.set()

    engine._publish = publish
    engine.start()
    yield engine, outputs, published
    engine.stop()
    assert not engine.is_alive


def wait_for_end(sequence: Sequence, outputs: list[StepOutput]) -> StepOutput:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for output in list(outputs):
            if output.sequence is sequence and output.is_last:
                return output
        time.sleep(0.002)
    raise AssertionError("no last output")


def test_thread_computes_and_idles(
    model: Model, threaded: tuple[SteppedEngine, list[StepOutput], threading.Event]
) -> None:
    engine, outputs, _ = threaded
    first, second = new_sequence(model.case("text")), new_sequence(model.case("video"))
    engine.add(first)
    engine.add(second)
    wait_for_end(first, outputs)
    wait_for_end(second, outputs)
    assert answer(second) == model.case("video").expected
    num_steps, cpu_s = engine.counters.num_steps, time.process_time()
    time.sleep(0.2)
    assert engine.counters.num_steps == num_steps
    assert time.process_time() - cpu_s < 0.1, "an idle engine must not spin"
    assert engine.call(lambda: engine.pool.num_held_pages).result(timeout=5) == 0
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(timeout=5)


def test_stop_fails_what_runs(model: Model, threaded: tuple[SteppedEngine, list[StepOutput], threading.Event]) -> None:
    engine, outputs, published = threaded
    sequence = new_sequence(model.case("text"), greedy(400))
    engine.add(sequence)
    assert published.wait(5)
    engine.stop()
    assert isinstance(wait_for_end(sequence, outputs).error, Unavailable)
    assert engine.pool.num_held_pages == 0
    engine.stop()
