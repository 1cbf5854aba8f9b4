"""Asks a system the prompts of the set, and holds what it answers against transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from equality_cases import Case
from equality_reference import NUM_NEW_TOKENS, Expected
from harness import InProcessSystem

from router.control.membership import StageName
from triptych import client
from triptych.v1 import admin_pb2

GREEDY = {"max_tokens": NUM_NEW_TOKENS, "ignore_eos": True, "temperature": 0.0}


async def ask_together(
    system: InProcessSystem, cases: Sequence[Case], max_tokens: int = NUM_NEW_TOKENS
) -> dict[str, client.Answer]:
    """All at once."""
    options = GREEDY | {"max_tokens": max_tokens}
    answers = await asyncio.gather(*(system.client.chat(case.messages, **options) for case in cases))
    return {case.name: answer for case, answer in zip(cases, answers, strict=True)}


async def ask_in_turn(system: InProcessSystem, cases: Sequence[Case]) -> dict[str, client.Answer]:
    """Each alone."""
    return {case.name: await system.client.chat(case.messages, **GREEDY) for case in cases}


def assert_tokens_of_transformers(answers: Mapping[str, client.Answer], expected: Mapping[str, Expected]) -> None:
    """All tokens of all answers; says for each answer that differs at which token it begins to."""
    differing = {
        name: _first_difference(answer.token_ids, expected[name].token_ids)
        for name, answer in answers.items()
        if answer.token_ids != expected[name].token_ids
    }
    assert not differing, f"first differing token by prompt: {differing}"
    assert all(answer.usage.completion_tokens == NUM_NEW_TOKENS for answer in answers.values())


async def infos(system: InProcessSystem, stage: StageName) -> list[admin_pb2.ActorInfo]:
    """What the running actors of a stage say about themselves."""
    return [await system.info(actor_id) for actor_id in system.ids(stage)]


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((index for index, (our, their) in enumerate(pairs) if our != their), min(len(ours), len(theirs)))
