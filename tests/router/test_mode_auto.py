"""Mode auto over fake actors: who encodes, why, and that the answer says so."""

from __future__ import annotations

import asyncio

from fake_actors import FakeSystem
from router_helpers import text_part, user_request
from test_walk import SPLIT, ask, picture_request

from triptych.v1 import language_pb2


def auto_system(*stages: str, **overrides: object) -> FakeSystem:
    return FakeSystem(*stages, disaggregated=False, mode="auto", **overrides)


def has_pixels(request: language_pb2.PrefillRequest) -> bool:
    return bool(request.prompt.media[0].HasField("media"))


async def test_an_idle_actor_encodes_by_itself() -> None:
    async with auto_system(*SPLIT) as system:
        answer = await ask(system, picture_request())
        assert answer.summary.route.encode_reason == "idle_language_actor"
        assert not answer.summary.route.encoder_actors and not system.actors["encoder-0"].requests
        assert has_pixels(system.actors["prefill-0"].requests[0])


async def test_an_actor_with_running_answers_is_spared() -> None:
    async with auto_system("encoder", "prefill_decode", router={"stall_share": 1.0}) as system:
        actor = system.actors["prefill_decode-0"]
        actor.step_s = 0.1
        running = asyncio.create_task(ask(system, picture_request(2)))
        await actor.decoding.wait()
        await asyncio.sleep(0.05)
        system.dispatcher._resources.placer._encode_costs._language_s_per_patch = 1e-2
        answer = await ask(system, picture_request(1))
        await running
        assert answer.summary.route.encode_reason == "running_answers"
        assert list(answer.summary.route.encoder_actors) == ["encoder-0"]


async def test_a_picture_that_encoders_hold_goes_there_again() -> None:
    async with auto_system("encoder", "prefill_decode") as system:
        costs = system.dispatcher._resources.placer._encode_costs
        costs._language_s_per_patch = 1.0
        first = await ask(system, picture_request())
        second = await ask(system, picture_request())
        assert first.summary.route.encode_reason == "faster_encoders"
        assert second.summary.route.encode_reason == "cached"


async def test_without_encoders_requests_go_on() -> None:
    async with auto_system("prefill_decode") as system:
        answer = await ask(system, picture_request())
        assert answer.summary.route.encode_reason == "no_encoder"
        assert answer.token_ids == answer.expected


async def test_text_is_not_a_choice() -> None:
    async with auto_system(*SPLIT) as system:
        answer = await ask(system, user_request(text_part("hello"), max_tokens=3))
        assert answer.summary.route.encode_reason == "no_media"
