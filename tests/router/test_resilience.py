"""Full actors, broken actors and slow encoders: who is asked instead, and when nobody is."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from fake_actors import FakeSystem
from router_helpers import image_part, png, text_part, user_request
from test_walk import SPLIT, ask, no_load, picture_request, until, until_idle

from router.dispatch.encode_costs import EncodeTail
from triptych.errors import InternalError, Overloaded, Unavailable
from triptych.v1 import inference_pb2


def fresh_picture(random: Random) -> inference_pb2.GenerateRequest:
    color = tuple(random.randrange(256) for _ in range(3))
    return user_request(image_part(png(color=color)), text_part("?"), max_tokens=4)


@pytest.mark.parametrize("stage", SPLIT)
async def test_a_full_actor_is_no_reason_to_refuse_while_another_has_room(stage: str) -> None:
    async with FakeSystem(*SPLIT) as system:
        system.actors[f"{stage}-0"].failure = Overloaded("full", field="f", retry_after_s=2.5)
        other = await system.add(stage)
        answer = await ask(system, picture_request())
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 8
        assert other.requests and answer.summary.route.attempts == 2


async def test_when_all_are_full_the_client_is_told_once_each_was_asked() -> None:
    async with FakeSystem(*SPLIT) as system:
        for actor in (system.actors["encoder-0"], await system.add("encoder")):
            actor.failure = Overloaded("full", field="f", retry_after_s=60.0)
        with pytest.raises(Overloaded) as caught:
            await ask(system, picture_request())
        assert caught.value.retry_after_s == 60.0
        assert [len(system.actors[f"encoder-{n}"].requests) for n in range(2)] == [1, 1]
        await until_idle(system)
        assert no_load(system)


@pytest.mark.parametrize("stage", SPLIT)
async def test_a_full_stage_is_asked_again_when_it_said_however_often(stage: str) -> None:
    """More often than actors may fail."""
    async with FakeSystem(*SPLIT, router={"max_attempts": 2}) as system:
        actor = system.actors[f"{stage}-0"]
        actor.failure, actor.failures_left = Overloaded("full", field="f", retry_after_s=0.01), 5
        answer = await ask(system, picture_request())
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 8
        assert answer.summary is not None and answer.summary.route.attempts == 6
        await until_idle(system)
        assert no_load(system)


async def test_room_for_encoding_and_prefill_is_free_once_an_answer_flows() -> None:
    """The second request has to wait for room of either kind, which the first gives back long before its end."""
    bounds = {"encoder": {"max_pending_patches": 20}, "prefill": {"max_waiting_tokens": 40}}
    async with FakeSystem(*SPLIT, stages=bounds) as system:
        encoder, decode = system.actors["encoder-0"], system.actors["decode-0"]
        encoder.gate.clear()
        decode.decode_gate.clear()
        first, second = (asyncio.create_task(ask(system, picture_request(max_tokens=8))) for _ in range(2))
        await until(lambda: bool(encoder.requests) and system.dispatcher.counts().num_waiting == 1)
        encoder.gate.set()
        await until(lambda: len(system.actors["prefill-0"].requests) == 1)
        assert system.dispatcher.counts().num_waiting == 1
        decode.step_s = 60.0  # From its second token on.
        decode.decode_gate.set()
        await until(lambda: len(encoder.requests) == 2)
        assert not first.done()
        for asking in (first, second):
            asking.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await until_idle(system)
        assert no_load(system)


async def test_an_actor_that_keeps_failing_is_left_alone() -> None:
    router = {"circuit_failures": 2, "circuit_pause_s": 60.0, "placement": "round_robin"}
    async with FakeSystem(*SPLIT, router=router) as system:
        system.actors["encoder-0"].failure = Unavailable("flaky")
        await system.add("encoder")
        random = Random(3)
        for _ in range(10):
            answer = await ask(system, fresh_picture(random))
            assert answer.token_ids == answer.expected
        assert len(system.actors["encoder-0"].requests) == 2


async def test_the_only_actor_of_a_stage_is_asked_however_often_it_failed() -> None:
    async with FakeSystem(*SPLIT, router={"circuit_failures": 1, "circuit_pause_s": 60.0}) as system:
        encoder = system.actors["encoder-0"]
        encoder.failure, encoder.failures_left = Unavailable("flaky"), 1
        answer = await ask(system, picture_request())
        assert answer.token_ids == answer.expected


async def test_a_bug_opens_no_circuit_for_it_is_the_requests_own() -> None:
    async with FakeSystem(*SPLIT, router={"circuit_failures": 1}) as system:
        system.actors["encoder-0"].failure = InternalError("bug")
        other = await system.add("encoder")
        with pytest.raises(InternalError):
            await ask(system, picture_request())
        system.actors["encoder-0"].failure = None
        assert (await ask(system, picture_request())).token_ids
        assert not other.requests


@pytest.fixture
def known_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after many requests: an encode takes at most 50 ms."""
    monkeypatch.setattr(EncodeTail, "p99_s", lambda self, num_patches: 0.05)


@pytest.mark.usefixtures("known_tail")
async def test_a_hedged_request_is_answered_by_the_quicker_encoder() -> None:
    async with FakeSystem(*SPLIT, router={"hedge_encode": True}) as system:
        slow = system.actors["encoder-0"]
        slow.gate.clear()
        other = await system.add("encoder")
        answer = await ask(system, picture_request(), timeout_s=5.0)
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 8
        assert list(answer.summary.route.encoder_actors) == [other.actor_id]
        assert slow.num_cancelled == 1
        await until_idle(system)
        assert no_load(system)


@pytest.mark.usefixtures("known_tail")
@pytest.mark.parametrize("num_encoders", [1, 2])
async def test_a_quick_request_and_a_lone_encoder_are_not_hedged(num_encoders: int) -> None:
    async with FakeSystem(*SPLIT, router={"hedge_encode": True}) as system:
        if num_encoders == 2:
            await system.add("encoder")
        else:
            system.actors["encoder-0"].gate.clear()
            asyncio.get_running_loop().call_later(0.2, system.actors["encoder-0"].gate.set)
        await ask(system, picture_request(), timeout_s=5.0)
        assert sum(len(system.actors[f"encoder-{n}"].requests) for n in range(num_encoders)) == 1


@pytest.mark.usefixtures("known_tail")
async def test_a_hedge_that_fails_leaves_the_first_walk_its_chance() -> None:
    async with FakeSystem(*SPLIT, router={"hedge_encode": True}) as system:
        slow = system.actors["encoder-0"]
        slow.gate.clear()
        (await system.add("encoder")).failure = Unavailable("broken")
        asyncio.get_running_loop().call_later(0.3, slow.gate.set)
        answer = await ask(system, picture_request(), timeout_s=5.0)
        assert answer.token_ids == answer.expected and answer.summary.route.attempts == 1


@pytest.mark.usefixtures("known_tail")
async def test_a_hedged_request_that_is_cancelled_leaves_nothing() -> None:
    async with FakeSystem(*SPLIT, router={"hedge_encode": True}) as system:
        for actor in (system.actors["encoder-0"], await system.add("encoder")):
            actor.gate.clear()
        asking = asyncio.create_task(ask(system, picture_request(), timeout_s=5.0))
        await asyncio.sleep(0.2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until_idle(system)
        assert no_load(system)


def test_the_tail_is_told_once_enough_is_known() -> None:
    assert EncodeTail().p99_s(1_000) is None
