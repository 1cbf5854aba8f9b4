"""No silent fallback: every picture goes through an encoder and counts for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import Any

import grpc
import pytest
from equality_cases import Case
from equality_runs import ask_together, infos
from harness import ONE_OF_EACH, ONE_OF_TWO, TWO_ENCODERS, InProcessSystem, Topology

from router.control.membership import Member, StageName
from router.dispatch.placement import Placement
from router.dispatch.preparation import Preparation
from router.dispatch.stage_requests import StageRequests
from router.dispatch.tickets import TicketMaker
from triptych.client import image, user
from triptych.demo.pictures import COLOUR_RANGES, SHAPE_KINDS, Scene, Shape, draw, random_rgb
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.switch import SWITCH
from triptych.v1 import inference_pb2, language_pb2_grpc


@pytest.mark.parametrize("topology", [ONE_OF_TWO, ONE_OF_EACH, TWO_ENCODERS], ids=str)
async def test_every_picture_goes_through_an_encoder(cases: tuple[Case, ...], topology: Topology) -> None:
    num_media = sum(len(case.media) for case in cases)
    # Cases begin with the same picture: what the prefix cache has of one is not fetched for the next.
    stages = {name: {"enable_prefix_cache": False} for name in ("prefill", "decode", "prefill_decode")}
    async with InProcessSystem(BUILT_IN_FOLDER, topology, stages=stages) as system:
        answers = await ask_together(system, cases, max_tokens=2)
        encoders = await infos(system, StageName.ENCODER)
        assert sum(info.encoder.accepted_items for info in encoders) == num_media
        assert all(info.encoder.accepted_items > 0 and info.encoder.rejected_items == 0 for info in encoders)
        prefillers = await infos(system, StageName.PREFILL) or await infos(system, StageName.PREFILL_DECODE)
        assert sum(info.language.accepted_embeddings for info in prefillers) == num_media
        for case in cases:
            answer, ids = answers[case.name], {info.actor_id for info in encoders}
            assert set(answer.route.encoder_actors) <= ids
            assert bool(answer.route.encoder_actors) == bool(case.media)
            assert len(answer.route.embedding_lanes) == len(case.media)
            assert answer.route.attempts == 1


async def test_text_never_asks_an_encoder(cases: tuple[Case, ...]) -> None:
    async with InProcessSystem(BUILT_IN_FOLDER, ONE_OF_EACH) as system:
        await ask_together(system, [case for case in cases if not case.media], max_tokens=2)
        [info] = await infos(system, StageName.ENCODER)
        assert info.encoder.accepted_items == info.leases.granted_leases == 0


async def test_different_pictures_give_different_answers() -> None:
    """One question about eighteen pictures of one size that differ in shape and colour alone.

    When the first was answered, its prompt's pages are in the prefix cache; no other prompt may take the picture's.
    """
    question = "What is in the picture?"
    names = [(colour, kind) for colour in COLOUR_RANGES for kind in SHAPE_KINDS]
    scenes = [
        Scene(112, 112, (255, 255, 255), (Shape(kind, colour, random_rgb(Random(7), colour), 0.5, 0.5, 0.3),))
        for colour, kind in names
    ]
    async with InProcessSystem(BUILT_IN_FOLDER, ONE_OF_EACH) as system:
        answers = [await system.client.ask(question, images=[draw(scenes[0])])]
        answers += await asyncio.gather(*(system.client.ask(question, images=[draw(scene)]) for scene in scenes[1:]))
    assert len({answer.usage.prompt_tokens for answer in answers}) == 1
    articles = {"orange": "An"}
    assert [answer.text for answer in answers] == [
        f"{articles.get(colour, 'A')} {colour} {kind}." for colour, kind in names
    ]


@pytest.mark.parametrize(
    ("topology", "stage"),
    [
        (ONE_OF_TWO, StageName.PREFILL_DECODE),
        (ONE_OF_EACH, StageName.PREFILL),
        (ONE_OF_EACH, StageName.DECODE),
    ],
    ids=str,
)
async def test_pixels_are_refused_under_the_switch(topology: Topology, stage: StageName) -> None:
    """Prefill and Decode with the picture itself, as an actor with a tower would get it."""
    async with InProcessSystem(BUILT_IN_FOLDER, topology) as system:
        [member] = system.membership.members(stage)
        async with grpc.aio.insecure_channel(member.endpoint) as channel:
            for call in calls_with_pixels(system, member, language_pb2_grpc.LanguageServiceStub(channel)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                for named in (f"{SWITCH}=1", "prompt.media[0].media", "mode: colocated"):
                    assert named in caught.value.details()
        answer = await system.client.ask("What is 2 plus 3?")
        assert answer.text == "2 plus 3 is 5."
        await system.wait_until_nothing_is_held()


def calls_with_pixels(
    system: InProcessSystem, member: Member, stub: language_pb2_grpc.LanguageServiceStub
) -> list[Awaitable[Any]]:
    """What the actor's role answers, each with a picture in its prompt instead of a ticket."""
    with_pages = requests_with_pixels(system, Placement((), member, member))
    if member.stage is StageName.DECODE:
        return [stub.Decode(with_pages.decode, timeout=10)]
    prefill = stub.Prefill(with_pages.prefill, timeout=10)
    if member.stage is StageName.PREFILL:
        return [prefill]
    alone = requests_with_pixels(system, Placement((), None, member))
    return [prefill, stub.Decode(alone.decode, timeout=10)]


def requests_with_pixels(system: InProcessSystem, placement: Placement) -> StageRequests:
    """The messages of a walk without an encoder: the picture itself goes to the LLM actor."""
    preparation = Preparation(system.config, "tiny", BUILT_IN_FOLDER)
    picture = draw(Scene(112, 84, (0, 0, 0), ()))
    request = inference_pb2.GenerateRequest(messages=[user(image(picture), "What is it?")])
    tickets = TicketMaker(ModelConfig.from_folder(BUILT_IN_FOLDER).text, page_size=16, lease_s=10.0)
    return StageRequests.make(preparation.prepare_now(request), (), placement, tickets, "router-test")
