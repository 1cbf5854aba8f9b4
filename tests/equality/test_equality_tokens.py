"""Greedy tokens, float32: those of transformers on every topology, whatever the batch, the cache and the pages do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from equality_cases import Case
from equality_reference import NUM_NEW_TOKENS, Expected
from equality_runs import GREEDY, ask_in_turn, ask_together, assert_tokens_of_transformers, infos
from harness import ONE_OF_EACH, ONE_OF_TWO, TOPOLOGIES, InProcessSystem, Topology

from router.control.membership import StageName
from triptych.models_folder import BUILT_IN_FOLDER

# Logits of two right implementations differ by some 1e-5: a token that leads by less than this could be either.
SMALLEST_MARGIN = 1e-3
LANGUAGE_STAGES = ("prefill", "decode", "prefill_decode")
# All prompts with their answers take 326 pages of 16 tokens, the longest one 29.
FEW_PAGES = {"num_pages": 40}


def built_in(topology: Topology, **overrides: Any) -> InProcessSystem:
    return InProcessSystem(BUILT_IN_FOLDER, topology, **overrides)


def on_language_stages(**values: Any) -> dict[str, Any]:
    return dict.fromkeys(LANGUAGE_STAGES, values)


def test_the_set_is_what_it_should_be(cases: tuple[Case, ...], expected: dict[str, Expected]) -> None:
    """No answer hangs on rounding (else choose another prompt), and none is too dull to show a difference."""
    assert len(cases) == len(expected) >= 24
    unsure = {
        name: answer.smallest_margin for name, answer in expected.items() if answer.smallest_margin < SMALLEST_MARGIN
    }
    assert not unsure
    assert all(len(answer.token_ids) == NUM_NEW_TOKENS for answer in expected.values())
    assert len({answer.token_ids for answer in expected.values()}) == len(cases)


async def test_each_prompt_alone(cases: tuple[Case, ...], expected: dict[str, Expected]) -> None:
    async with built_in(ONE_OF_EACH) as system:
        assert_tokens_of_transformers(await ask_in_turn(system, cases), expected)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
async def test_mixed_batch_and_prefix_cache_hit(
    cases: tuple[Case, ...], expected: dict[str, Expected], topology: Topology
) -> None:
    # Room for all prompts, so that none is gone from the cache when it comes again.
    async with built_in(topology, stages=on_language_stages(num_pages=1024)) as system:
        assert_tokens_of_transformers(await ask_together(system, cases), expected)
        decoders = await infos(system, StageName.DECODE) or await infos(system, StageName.PREFILL_DECODE)
        num_steps = sum(info.language.num_steps for info in decoders)
        assert num_steps < len(cases) * NUM_NEW_TOKENS / 4, "the prompts were not answered in one batch"

        again = await ask_together(system, cases)
        assert_tokens_of_transformers(again, expected)
        for answer in again.values():
            # Full pages of 16 tokens before the last token.
            assert answer.usage.cached_prompt_tokens == (answer.usage.prompt_tokens - 1) // 16 * 16 > 0
        await system.wait_until_nothing_is_held()


@pytest.mark.parametrize("lane", ["shm", "grpc"])
async def test_forced_lane(cases: tuple[Case, ...], expected: dict[str, Expected], lane: str) -> None:
    # Cases begin with the same picture: what the prefix cache has of one is not fetched for the next.
    stages = on_language_stages(enable_prefix_cache=False)
    async with built_in(ONE_OF_EACH, transport={"lanes": [lane]}, stages=stages) as system:
        answers = await ask_together(system, cases)
        assert_tokens_of_transformers(answers, expected)
        for case in cases:
            route = answers[case.name].route
            assert list(route.embedding_lanes) == [lane] * len(case.media)
            assert route.kv_lane == lane


@pytest.mark.parametrize("topology", [ONE_OF_TWO, ONE_OF_EACH], ids=str)
async def test_prompts_in_chunks(cases: tuple[Case, ...], expected: dict[str, Expected], topology: Topology) -> None:
    """Chunks that end inside pictures, in steps that hold the decodes of others too."""
    stages = on_language_stages(prefill_chunk_tokens=7, max_step_tokens=48)
    async with built_in(topology, stages=stages) as system:
        answers = await ask_together(system, cases)
        assert_tokens_of_transformers(answers, expected)
        prefillers = await infos(system, StageName.PREFILL) or await infos(system, StageName.PREFILL_DECODE)
        num_prompt_tokens = sum(answer.usage.prompt_tokens for answer in answers.values())
        assert sum(info.language.num_steps for info in prefillers) > num_prompt_tokens / 48


async def test_preempted_and_recomputed(cases: tuple[Case, ...], expected: dict[str, Expected]) -> None:
    # Without the prefix cache nothing of a preempted prompt can come back by itself.
    few_pages = FEW_PAGES | {"enable_prefix_cache": False}
    async with built_in(ONE_OF_TWO, stages={"prefill_decode": few_pages}) as system:
        assert_tokens_of_transformers(await ask_together(system, cases), expected)
        [info] = await infos(system, StageName.PREFILL_DECODE)
        assert info.language.num_preemptions > 0
        await system.wait_until_nothing_is_held()


async def test_preempted_and_parked(cases: tuple[Case, ...], expected: dict[str, Expected]) -> None:
    """A decode actor has no embeddings, so a prompt with pictures can't be computed again: its pages are put aside."""
    with_media = [case for case in cases if case.media]
    async with built_in(ONE_OF_EACH, stages={"decode": FEW_PAGES}) as system:
        assert_tokens_of_transformers(await ask_together(system, with_media), expected)
        [info] = await infos(system, StageName.DECODE)
        assert info.language.num_preemptions > 0
        assert info.language.accepted_embeddings == 0
        await system.wait_until_nothing_is_held()


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[tuple[int, ...]]]:
    """Tokens drawn with a seed, by topology."""
    return {}


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
async def test_a_seed_gives_the_same_tokens_everywhere(
    cases: tuple[Case, ...],
    expected: dict[str, Expected],
    topology: Topology,
    drawn: dict[str, list[tuple[int, ...]]],
) -> None:
    asked = cases[::3]
    options = GREEDY | {"temperature": 1.0}
    async with built_in(topology) as system:
        answers = await asyncio.gather(
            *(system.client.chat(case.messages, **options, seed=seed) for seed, case in enumerate(asked)),
            system.client.chat(asked[0].messages, **options, seed=99),
            system.client.chat(asked[0].messages, **options, seed=0, top_p=0.9, top_k=20),
        )
    tokens = drawn[str(topology)] = [answer.token_ids for answer in answers]
    assert all(others == tokens for others in drawn.values())
    assert tokens[0] != tokens[-2], "another seed draws other tokens"
    num_greedy = sum(ours == expected[case.name].token_ids for case, ours in zip(asked, tokens, strict=False))
    assert num_greedy < len(asked) / 2, "nothing was drawn"
