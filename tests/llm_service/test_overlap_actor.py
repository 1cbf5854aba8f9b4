"""Prefill beside encoding, over gRPC: an actor computes what is there, and holds nothing of a request that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from engine_helpers import CASES, Case, Model
from service_helpers import TIMEOUT_S, Cluster, RunningActor, decode_request, error_of, make_config, sampling

from triptych.errors import Unavailable
from triptych.v1 import language_pb2

NAME = "video between images"


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(int(TIMEOUT_S / 0.002)):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it does not come true")


def num_computed(running: RunningActor) -> int:
    """Of the one sequence in the actor's engine."""
    stage = running.actor._parts.stage
    assert stage is not None
    return max((sequence.num_computed_tokens for sequence in stage._engine.scheduler.running), default=0)


def grant(cluster: Cluster, prompt: language_pb2.Prompt, case: Case, index: int) -> None:
    cluster.producer.leases.grant(prompt.media[index].ticket.ticket_id, case.embeddings[index])


async def start(cluster: Cluster, role: str = "prefill", **section: Any) -> RunningActor:
    return await cluster.actor(role, make_config(cluster.model, overlap_min_tokens=1, **section))


def prefill(cluster: Cluster, running: RunningActor, prompt: language_pb2.Prompt, case: Case) -> Any:
    ticket = cluster.kv_ticket(running, case.prompt.num_tokens)
    request = language_pb2.PrefillRequest(request_id="r", prompt=prompt, sampling=sampling(), kv_ticket=ticket)
    return running.language.Prefill(request, timeout=TIMEOUT_S)


async def test_each_picture_is_prefilled_when_it_is_ready(model: Model, cluster: Cluster) -> None:
    running = await start(cluster, "prefill_decode")
    router = await cluster.router(running)
    case = model.case(NAME)
    prompt = cluster.prompt(case, grant=False)
    call = running.language.Decode(decode_request(cluster, case, "r", prompt=prompt), timeout=TIMEOUT_S)
    call = asyncio.ensure_future(call)
    for index, span in enumerate(case.prompt.media):
        await until(lambda span=span: num_computed(running) == span.offset)  # type: ignore[misc]
        grant(cluster, prompt, case, index)
    result = await call
    assert tuple(await router.answer("r")) == case.expected
    assert list(result.prefill.embedding_lanes) == ["grpc"] * 3
    assert (await running.wait_released()).language.accepted_embeddings == 3
    await cluster.wait_released()


@pytest.mark.parametrize("overlap_encode", [True, False])
async def test_tokens_are_equal_with_and_without_overlap(model: Model, cluster: Cluster, overlap_encode: bool) -> None:
    """All cases at once, pictures granted one by one, the last of each prompt first."""
    running = await start(cluster, "prefill_decode", overlap_encode=overlap_encode)
    router = await cluster.router(running)
    prompts = {name: cluster.prompt(model.case(name), grant=False) for name in CASES}
    calls = [
        running.language.Decode(
            decode_request(cluster, model.case(name), name.replace(" ", "-"), prompt=prompt), timeout=TIMEOUT_S
        )
        for name, prompt in prompts.items()
    ]
    for index in (2, 1, 0):
        await asyncio.sleep(0.02)
        for name, prompt in prompts.items():
            if index < len(prompt.media):
                grant(cluster, prompt, model.case(name), index)
    await asyncio.gather(*calls)
    for name in CASES:
        assert tuple(await router.answer(name.replace(" ", "-"))) == model.case(name).expected
    await running.wait_released()
    await cluster.wait_released()


async def test_without_overlap_nothing_is_computed_before_the_last_picture(model: Model, cluster: Cluster) -> None:
    running = await start(cluster, overlap_encode=False)
    case = model.case("two images")
    prompt = cluster.prompt(case, grant=False)
    call = asyncio.ensure_future(prefill(cluster, running, prompt, case))
    grant(cluster, prompt, case, 0)
    await cluster.wait_released()
    assert (await running.ask()).language.num_steps == 0
    grant(cluster, prompt, case, 1)
    assert (await call).first_token_id == case.expected[0]


@pytest.mark.parametrize("how", ["cancel", "abort"])
async def test_a_request_that_ends_between_two_pictures_holds_nothing(model: Model, cluster: Cluster, how: str) -> None:
    running = await start(cluster)
    case = model.case("two images")
    prompt = cluster.prompt(case, grant=False)
    call = prefill(cluster, running, prompt, case)
    grant(cluster, prompt, case, 0)
    await until(lambda: num_computed(running) == case.prompt.media[1].offset)
    if how == "cancel":
        call.cancel()
    else:
        await running.language.Abort(language_pb2.AbortRequest(request_ids=["r"]))
    await asyncio.gather(call, return_exceptions=True)
    await running.wait_released()
    # The second ticket was given up as well: what is granted now goes as soon as the producer has heard of it.
    grant(cluster, prompt, case, 1)
    await cluster.wait_released()
    assert cluster.producer.leases.counters().expired == 0


async def test_an_encoder_that_fails_after_half_of_the_pictures(model: Model, cluster: Cluster) -> None:
    """The error is the encoder's; the next attempt computes only what the first had not."""
    running = await start(cluster)
    case = model.case("two images")
    prompt = cluster.prompt(case, grant=False)
    call = asyncio.ensure_future(prefill(cluster, running, prompt, case))
    grant(cluster, prompt, case, 0)
    second = case.prompt.media[1]
    await until(lambda: num_computed(running) == second.offset)
    cluster.producer.leases.fail(prompt.media[1].ticket.ticket_id, Unavailable("the encoder has ended"))
    assert isinstance(await error_of(call), Unavailable)
    await running.wait_released()
    again = cluster.prompt(case, grant=False)
    call = asyncio.ensure_future(prefill(cluster, running, again, case))
    # Nobody grants the first one again: its ticket is released, so that no encoder makes it.
    first_id = again.media[0].ticket.ticket_id
    unwanted: list[str] = []
    cluster.producer.leases.expect(first_id, on_unwanted=lambda: unwanted.append(first_id))
    await until(lambda: unwanted == [first_id])
    assert not call.done()
    grant(cluster, again, case, 1)
    response = await call
    assert response.first_token_id == case.expected[0]
    assert response.cached_prompt_tokens == second.offset // 8 * 8
    assert list(response.embedding_lanes) == ["grpc"]
    await until(lambda: cluster.producer.leases.counters().pending == 0)
