"""The engine's greedy tokens are those of transformers, whatever the batch, the chunks and the cache look like."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import CASES, MakeEngine, Model, answer, greedy, new_sequence

from llm_service.prompt import Prompt
from llm_service.sequence import Sequence


@pytest.mark.parametrize("name", CASES)
def test_alone(model: Model, make_engine: MakeEngine, name: str) -> None:
    case, engine = model.case(name), make_engine()
    sequence = new_sequence(case)
    engine.run([sequence])
    assert answer(sequence) == case.expected
    assert len(set(case.expected)) > 8, "an answer this dull would not show a difference"
    assert engine.pool.num_held_pages == 0


@pytest.mark.parametrize("prefill_chunk_tokens", [3, 16, 1024])
def test_mixed_batch_in_chunks(model: Model, make_engine: MakeEngine, prefill_chunk_tokens: int) -> None:
    engine = make_engine(prefill_chunk_tokens=prefill_chunk_tokens, max_step_tokens=24)
    sequences = [new_sequence(model.case(name)) for name in CASES]
    # Arriving one after the other, so that steps hold decodes and chunks of prompts together.
    for sequence in sequences:
        engine.add(sequence)
        for _ in range(4):
            engine.step()
    engine.run()
    assert [answer(sequence) for sequence in sequences] == [model.case(name).expected for name in CASES]


def test_prefix_cache_hit(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine()
    for name in CASES:
        case = model.case(name)
        first, second = new_sequence(case), new_sequence(case)
        engine.run([first])
        engine.run([second])
        assert answer(second) == case.expected
        assert first.num_cached_prompt_tokens == 0
        assert second.num_cached_prompt_tokens == (case.prompt.num_tokens - 1) // 8 * 8


def test_same_tokens_other_picture_is_no_hit(model: Model, make_engine: MakeEngine) -> None:
    """Prompts that differ in nothing but the content of a picture share the pages before it and no more."""
    case, engine = model.case("two images"), make_engine(page_size=4)
    engine.run([new_sequence(case)])
    media = list(case.prompt.media)
    second_picture = media[1]
    media[1] = type(second_picture)(**{**vars(second_picture), "content_key": "other"})
    prompt = Prompt.build(case.prompt.token_ids, media, model.config)
    embeddings = (case.embeddings[0], case.embeddings[1].flip(0))
    sequence = Sequence("request", prompt, greedy(), embeddings=embeddings)
    engine.run([sequence])
    assert sequence.num_cached_prompt_tokens == second_picture.offset // 4 * 4
    assert answer(sequence) != case.expected


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_preempted_and_recomputed(model: Model, make_engine: MakeEngine, page_size: int) -> None:
    """Pages for about two of six requests: they push each other out and still answer the same."""
    engine = make_engine(page_size=page_size, num_pages=256 // page_size)
    sequences = [new_sequence(model.case(name)) for name in CASES]
    engine.run(sequences)
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    assert [answer(sequence) for sequence in sequences] == [model.case(name).expected for name in CASES]
    assert engine.pool.num_held_pages == 0


@pytest.mark.parametrize("enable_prefix_cache", [True, False])
def test_preempted_and_parked(model: Model, make_engine: MakeEngine, enable_prefix_cache: bool) -> None:
    """The decode role: KV pages came from elsewhere, the embeddings are not at hand, so pages are copied out and in."""
    prefiller = make_engine()
    engine = make_engine(num_pages=32, enable_prefix_cache=enable_prefix_cache)
    decodes = []
    for name in CASES:
        prefill = new_sequence(model.case(name), is_prefill_only=True)
        prefiller.run([prefill])
        pages = prefiller.last_output(prefill).kv_pages
        assert pages is not None
        decodes.append(Sequence("request", prefill.prompt, greedy(), embeddings=None if prefill.prompt.media else ()))
        decodes[-1].take_over(prefill.token_ids[-1], pages)
    engine.run(decodes)
    parked = [sequence for sequence in decodes if not sequence.can_recompute and sequence.num_preemptions]
    assert parked
    assert [answer(sequence) for sequence in decodes] == [model.case(name).expected for name in CASES]
    assert engine.pool.num_held_pages == prefiller.pool.num_held_pages == 0


def test_resumed_after_some_tokens(model: Model, make_engine: MakeEngine) -> None:
    """Prompt and answer so far go in as a new prompt elsewhere; the rest of the answer is the same."""
    for name in CASES:
        case = model.case(name)
        token_ids = (*case.prompt.token_ids, *case.expected[:20])
        prompt = Prompt.build(token_ids, case.prompt.media, model.config, num_generated=20)
        sequence = Sequence("request", prompt, greedy(44), embeddings=case.embeddings)
        engine = make_engine()
        engine.run([sequence])
        assert answer(sequence) == case.expected[20:]


@pytest.mark.parametrize("name", CASES)
def test_a_generated_placeholder_is_text(model: Model, name: str) -> None:
    """A model may generate any id; in a resumed request it stands where it stood, and for no picture."""
    given = model.case(name).prompt
    generated = (5, model.config.image_token_id, model.config.video_token_id)
    resumed = Prompt.build((*given.token_ids, *generated), given.media, model.config, num_generated=3)
    assert (resumed.positions[:, :-3] == given.positions).all()
    assert (resumed.positions[:, -3:] == given.positions[:, -1:] + [1, 2, 3]).all()


def test_exported_pages_show_nothing_of_others(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(num_pages=20)
    engine.cache.tensor.fill_(7.0)
    sequence = new_sequence(model.case("text"), is_prefill_only=True)
    engine.run([sequence])
    pages = engine.last_output(sequence).kv_pages
    assert pages is not None
    assert pages.shape == (5, 3, 2, 8, 2, 8)
    assert torch.all(pages[4, :, :, 5:] == 0)
    assert not torch.any(pages == 7.0)
