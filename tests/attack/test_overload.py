"""Too much at once, too little time, and clients that leave or do not read."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from attack_helpers import (
    MIB,
    QUESTION,
    RIGHT_ANSWER,
    Attacker,
    Outcome,
    ask,
    bounded_memory,
    circle,
    image_part,
    text_part,
    user_request,
)
from harness import COLOCATED, ONE_OF_EACH, InProcessSystem, Topology

from triptych.models_folder import BUILT_IN_FOLDER
from triptych.v1 import inference_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL_STAGE = {"max_waiting_tokens": 400, "max_running_requests": 4, "num_pages": 64}
SMALL_BOUNDS = {
    "router": {"limits": {"max_pending_requests": 20}},
    "encoder": {"stages": {"encoder": {"max_pending_patches": 300, "cache_bytes": 0}}},
    "language": {"stages": dict.fromkeys(("prefill", "decode", "prefill_decode"), SMALL_STAGE)},
}


@asynccontextmanager
async def running(topology: Topology, **overrides: object) -> AsyncIterator[Attacker]:
    async with InProcessSystem(BUILT_IN_FOLDER, topology, **overrides) as system:
        attacker = Attacker(system)
        await attacker.check_aftermath()
        try:
            yield attacker
            await attacker.check_aftermath()
        finally:
            await attacker.close()


async def test_the_surplus_of_300_requests_is_told_when_to_come_again() -> None:
    async with running(ONE_OF_EACH, **SMALL_BOUNDS["router"]) as attacker:
        outcomes = await asyncio.gather(*(attacker.generate(_question()) for _ in range(300)))
        answered = [outcome for outcome in outcomes if outcome.code is grpc.StatusCode.OK]
        refused = [outcome for outcome in outcomes if outcome.code is not grpc.StatusCode.OK]
        assert {outcome.text for outcome in answered} == {RIGHT_ANSWER}
        assert refused
        for outcome in refused:
            _check_retry_advice(outcome)


def _check_retry_advice(outcome: Outcome) -> None:
    assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED, outcome.message
    assert "limits.max_pending_requests" in outcome.message, outcome.message
    assert 0 < outcome.retry_s <= 30
    assert int(outcome.trailers["grpc-retry-pushback-ms"]) == round(outcome.retry_s * 1_000)


@pytest.mark.parametrize(
    ("topology", "bound"), [(ONE_OF_EACH, "encoder"), (ONE_OF_EACH, "language"), (COLOCATED, "language")], ids=str
)
async def test_what_the_stages_have_no_room_for_waits_in_the_router(topology: Topology, bound: str) -> None:
    """Different pictures: one is encoded once however many ask for it."""
    async with running(topology, **SMALL_BOUNDS[bound]) as attacker:
        outcomes = await asyncio.gather(*(attacker.generate(_question(number)) for number in range(1, 101)))
        assert {(outcome.code, outcome.text) for outcome in outcomes} == {(grpc.StatusCode.OK, RIGHT_ANSWER)}
        # No stage had to refuse what the router let through.
        assert {outcome.attempts for outcome in outcomes} == {1}


def _question(number: int = 0) -> inference_pb2.GenerateRequest:
    return user_request(image_part(circle() + bytes(number)), text_part(QUESTION))


async def test_a_request_larger_than_a_stage_can_ever_hold_is_invalid() -> None:
    """Not RESOURCE_EXHAUSTED: coming again would not help."""
    bounds = {"stages": {"encoder": {"max_pending_patches": 60}} | dict.fromkeys(("prefill", "decode"), SMALL_STAGE)}
    async with InProcessSystem(BUILT_IN_FOLDER, ONE_OF_EACH, **bounds) as system:
        attacker = Attacker(system)
        picture = user_request(image_part(circle()), text_part(QUESTION))
        await attacker.refused(picture, "items", "64 patches", "at most 60 (stages.encoder.max_pending_patches)")
        await attacker.refused(ask("word " * 600), "messages", "(stages.prefill.num_pages)")
        await system.wait_until_nothing_is_held()
        assert (await attacker.generate(ask())).code is grpc.StatusCode.OK
        await attacker.close()


@pytest.mark.parametrize("timeout_s", [0.0, 0.001, 0.003, 0.01, 0.03])
async def test_a_deadline_that_is_too_short_is_said_to_have_passed(attacker: Attacker, timeout_s: float) -> None:
    request = user_request(image_part(circle()), text_part(QUESTION), max_tokens=3_000, ignore_eos=True)
    started = time.monotonic()
    outcomes = await asyncio.gather(*(attacker.generate(request, timeout_s) for _ in range(20)))
    assert time.monotonic() - started < timeout_s + 1.0
    assert {outcome.code for outcome in outcomes} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    await attacker.check_aftermath()


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(attacker: Attacker) -> None:
    moments = random.Random(5)

    async def leave(number: int) -> None:
        picture = circle() + bytes(number % 10)
        request = user_request(image_part(picture), text_part(QUESTION), max_tokens=500, ignore_eos=True)
        call = attacker.stub.Generate(request, timeout=20)
        await asyncio.sleep(moments.random() ** 2 * 0.4)
        if number % 3 == 0:
            await call.read()
        call.cancel()

    for first in range(0, 100, 20):
        await asyncio.gather(*(leave(number) for number in range(first, first + 20)))
        await attacker.system.wait_until_nothing_is_held()
    await attacker.check_aftermath()


async def test_clients_that_do_not_read_cost_little_and_slow_nobody(attacker: Attacker) -> None:
    """The last of them long enough to fill the window of its stream."""
    lengths = [100] * 8 + ([2_000] if attacker.system.topology == ONE_OF_EACH else [])
    with bounded_memory(96 * MIB):
        sleepers = [
            attacker.stub.Generate(ask(max_tokens=length, min_tokens=length, ignore_eos=True), timeout=60)
            for length in lengths
        ]
        outcome = await attacker.generate(user_request(image_part(circle()), text_part(QUESTION)))
        assert (outcome.text, outcome.seconds < 2) == (RIGHT_ANSWER, True)
        await _wait_until_decoded(attacker)
    for sleeper, length in zip(sleepers, lengths, strict=True):
        chunks = [response async for response in sleeper]
        assert sum(len(response.chunk.token_ids) for response in chunks) == length
        assert chunks[-1].summary.usage.completion_tokens == length
    await attacker.check_aftermath()


async def _wait_until_decoded(attacker: Attacker) -> None:
    """The language stages let go of the requests although nobody has read an answer."""
    deadline = time.monotonic() + 60
    while (held := await attacker.system.held())["running"] + held["waiting"]:
        assert time.monotonic() < deadline, held
        await asyncio.sleep(0.05)


async def test_a_connection_that_breaks_leaves_nothing_behind(attacker: Attacker) -> None:
    other = Attacker(attacker.system)
    request = ask(max_tokens=2_000, ignore_eos=True)
    calls = [other.stub.Generate(request, timeout=60) for _ in range(20)]
    # Which of them runs first is the scheduler's choice; the others may still wait for room.
    reads = [asyncio.ensure_future(call.read()) for call in calls]
    await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    await other.close()
    await asyncio.gather(*reads, return_exceptions=True)
    await attacker.check_aftermath()
