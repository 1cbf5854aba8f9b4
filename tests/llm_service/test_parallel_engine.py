"""Several ranks give the tokens of transformers, whatever the engine does with a sequence on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from engine_helpers import CASES, Model, SteppedEngine, answer, greedy, make_model, new_sequence
from kv_helpers import prefill_sequence, whole_pages
from numpy.typing import NDArray
from parallel_helpers import ParallelEngine

from llm_service.sequence import Sequence
from triptych.config import LanguageSection

MakeParallel = Callable[..., ParallelEngine]
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Heads for four ranks."""
    return make_model(tmp_path_factory.mktemp("ranks") / "model", hidden_size=64, num_heads=8, num_kv_heads=4)


@pytest.fixture
def make_parallel(wide_model: Model) -> Iterator[MakeParallel]:
    engines: list[ParallelEngine] = []

    def make(size: int = 2, num_steps_ahead: int = 0, **values: object) -> ParallelEngine:
        engines.append(ParallelEngine(wide_model.folder, size, num_steps_ahead, **values))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def sequences_of(model: Model, num_tokens: int = NUM_TOKENS) -> list[Sequence]:
    return [new_sequence(model.case(name), greedy(num_tokens)) for name in CASES]


def expected(model: Model, num_tokens: int = NUM_TOKENS) -> list[tuple[int, ...]]:
    return [model.case(name).expected[:num_tokens] for name in CASES]


@pytest.mark.parametrize("num_steps_ahead", [0, 1], ids=["plain", "overlapped"])
@pytest.mark.parametrize("size", [2, 4])
def test_text_pictures_and_videos(
    wide_model: Model, make_parallel: MakeParallel, size: int, num_steps_ahead: int
) -> None:
    engine = make_parallel(size, num_steps_ahead)
    sequences = sequences_of(wide_model)
    engine.run(sequences)
    assert [answer(sequence) for sequence in sequences] == expected(wide_model)
    assert all(follower.reader.num_sequences <= len(CASES) for follower in engine.followers)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_in_processes(wide_model: Model, make_parallel: MakeParallel, size: int) -> None:
    engine = make_parallel(size, in_processes=True)
    sequences = sequences_of(wide_model)
    engine.run(sequences)
    assert [answer(sequence) for sequence in sequences] == expected(wide_model)
    assert len({rank.process_id for rank in engine.ranks}) == size


@pytest.mark.parametrize("num_steps_ahead", [0, 1], ids=["plain", "overlapped"])
def test_chunked_prefill_beside_decodes(wide_model: Model, make_parallel: MakeParallel, num_steps_ahead: int) -> None:
    engine = make_parallel(2, num_steps_ahead, prefill_chunk_tokens=7, max_step_tokens=11)
    sequences = sequences_of(wide_model)
    for sequence in sequences:
        engine.engine.add(sequence)
        engine.step()
        engine.step()
    engine.run()
    assert [answer(sequence) for sequence in sequences] == expected(wide_model)


@pytest.mark.parametrize("num_steps_ahead", [0, 1], ids=["plain", "overlapped"])
@pytest.mark.parametrize("num_pages", [60, 400], ids=["preempted", "cached"])
def test_prefix_hits_and_preemption(
    wide_model: Model, make_parallel: MakeParallel, num_pages: int, num_steps_ahead: int
) -> None:
    engine = make_parallel(2, num_steps_ahead, page_size=2, num_pages=num_pages)
    first, second = sequences_of(wide_model), sequences_of(wide_model)
    engine.run(first)
    engine.run(second)
    assert [answer(sequence) for sequence in (*first, *second)] == expected(wide_model) * 2
    is_preempted = any(sequence.num_preemptions for sequence in (*first, *second))
    is_cached = any(sequence.num_cached_prompt_tokens for sequence in second)
    assert (is_preempted, is_cached) == ((True, False) if num_pages == 60 else (False, True))


def test_draws_are_those_of_one_rank(wide_model: Model, make_parallel: MakeParallel) -> None:
    sampling = greedy(NUM_TOKENS, temperature=1.3, top_k=20, top_p=0.9, seed=7, min_tokens=5)
    alone = SteppedEngine(wide_model, LanguageSection(page_size=8, num_pages=200, attention="torch"))
    engine = make_parallel(2)
    pairs = [[new_sequence(wide_model.case(name), sampling) for name in CASES] for _ in range(2)]
    alone.run(pairs[0])
    engine.run(pairs[1])
    assert [answer(sequence) for sequence in pairs[1]] == [answer(sequence) for sequence in pairs[0]]


def test_penalties_and_biases_are_those_of_one_rank(wide_model: Model, make_parallel: MakeParallel) -> None:
    sampling = greedy(
        NUM_TOKENS,
        presence_penalty=1.5,
        frequency_penalty=0.5,
        repetition_penalty=1.3,
        logit_bias=((5, 3.0), (9, -9.0)),
    )
    alone = SteppedEngine(wide_model, LanguageSection(page_size=8, num_pages=200, attention="torch"))
    engine = make_parallel(2, num_steps_ahead=1)
    pairs = [[new_sequence(wide_model.case(name), sampling) for name in CASES] for _ in range(2)]
    alone.run(pairs[0])
    engine.run(pairs[1])
    assert [answer(sequence) for sequence in pairs[1]] == [answer(sequence) for sequence in pairs[0]]


class EvenTokens:
    """A form that allows tokens of even numbers only, and other ones after each."""

    is_complete = False

    def __init__(self) -> None:
        self._last = -1

    def accept(self, token_id: int) -> None:
        self._last = token_id

    def mask(self) -> NDArray[np.int32]:
        words = np.full(4, 0x55555555, dtype=np.uint32)
        if self._last >= 0:
            words[self._last // 32] &= ~np.uint32(1 << self._last % 32)
        return words.view(np.int32)


@pytest.mark.parametrize("num_steps_ahead", [0, 1], ids=["plain", "overlapped"])
def test_what_a_form_allows_reaches_all_ranks(
    wide_model: Model, make_parallel: MakeParallel, num_steps_ahead: int
) -> None:
    def formed(name: str) -> Sequence:
        return new_sequence(wide_model.case(name), greedy(NUM_TOKENS), form=EvenTokens())

    alone = SteppedEngine(wide_model, LanguageSection(page_size=8, num_pages=200, attention="torch"))
    engine = make_parallel(2, num_steps_ahead)
    pairs = [[formed("one image"), formed("text"), new_sequence(wide_model.case("video"), greedy())] for _ in range(2)]
    alone.run(pairs[0])
    engine.run(pairs[1])
    assert [answer(sequence) for sequence in pairs[1]] == [answer(sequence) for sequence in pairs[0]]
    assert all(token % 2 == 0 for sequence in pairs[1][:2] for token in answer(sequence))
    assert not engine.link.lost.done()


def test_sequences_that_ended_are_forgotten(wide_model: Model, make_parallel: MakeParallel) -> None:
    engine = make_parallel(2)
    aborted = new_sequence(wide_model.case("text"), greedy())
    engine.engine.add(aborted)
    engine.step()
    engine.engine.abort(aborted)
    for _ in range(3):
        engine.run([new_sequence(wide_model.case("one token"), greedy(2))])
    (follower,) = engine.followers
    # The last one is told to be over with the step that comes next.
    assert follower.reader.num_sequences == 1


def test_parked_pages_come_back_to_their_ranks(wide_model: Model, make_parallel: MakeParallel) -> None:
    """A sequence whose media are not at hand is parked when it gives way: its pages leave and return."""
    source = make_parallel(2)
    case = wide_model.case("two images")
    prefill = new_sequence(case, greedy(), is_prefill_only=True)
    source.run([prefill])
    pages = source.outputs[-1].kv_pages
    assert pages is not None
    engine = make_parallel(2, page_size=8, num_pages=24)
    imported = Sequence("imported", case.prompt, greedy(), embeddings=None)
    imported.take_over(prefill.token_ids[-1], pages)
    others = [new_sequence(wide_model.case("one image"), greedy()), new_sequence(wide_model.case("text"), greedy())]
    engine.run([*others, imported])
    assert imported.num_preemptions > 0
    assert answer(imported) == case.expected
    assert [answer(other) for other in others] == [wide_model.case(name).expected for name in ("one image", "text")]


@pytest.mark.parametrize("layers_per_part", [0, 2])
@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_pages_move_between_groups_of_other_sizes(
    wide_model: Model, make_parallel: MakeParallel, sizes: tuple[int, int], layers_per_part: int
) -> None:
    def make(size: int) -> ParallelEngine | SteppedEngine:
        section = LanguageSection(page_size=8, num_pages=200, attention="torch")
        return SteppedEngine(wide_model, section) if size == 1 else make_parallel(size)

    source, target = make(sizes[0]), make(sizes[1])
    case = wide_model.case("video between images")
    prefill = prefill_sequence(source, case, rows=2 * (layers_per_part > 0), layers=layers_per_part)
    source.run([prefill])
    pages = whole_pages(source, prefill)
    alone = SteppedEngine(wide_model, LanguageSection(page_size=8, num_pages=200, attention="torch"))
    alone.run([same := new_sequence(case, greedy(), is_prefill_only=True)])
    reference = alone.last_output(same).kv_pages
    assert reference is not None
    torch.testing.assert_close(pages, reference, rtol=1e-4, atol=1e-4)
    decode = Sequence("decode", case.prompt, greedy(), embeddings=None)
    decode.take_over(prefill.token_ids[-1], pages)
    target.run([decode])
    assert answer(decode) == case.expected
