"""Calls to the language services, past the router, with prompts and tickets that lie."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from actor_calls import (
    GONE,
    HUGE_GRID,
    INVALID,
    PRECONDITION,
    TOO_LATE,
    UNKNOWN_TICKET,
    ActorCalls,
    check,
    pointing_at,
    set_fields,
)
from attack_helpers import QUESTION, Attacker, circle, image_part, text_part, user_request
from harness import COLOCATED, InProcessSystem

from triptych.models_folder import BUILT_IN_FOLDER
from triptych.v1 import common_pb2, language_pb2, language_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOWHERE = "127.0.0.1:1"
PrefillChange = Callable[[language_pb2.PrefillRequest], None]


def prompt_field(**values: Any) -> PrefillChange:
    return lambda request: set_fields(request.prompt, values)


def span_field(**values: Any) -> PrefillChange:
    return lambda request: set_fields(request.prompt.media[0], values)


def span_ticket_field(**values: Any) -> PrefillChange:
    return lambda request: set_fields(request.prompt.media[0].ticket, values)


def kv_field(**values: Any) -> PrefillChange:
    return lambda request: set_fields(request.kv_ticket, values)


def sampling_field(**values: Any) -> PrefillChange:
    return lambda request: set_fields(request.sampling, values)


def request_field(**values: Any) -> PrefillChange:
    return lambda request: set_fields(request, values)


def paced(second_per_grid_t: float) -> PrefillChange:
    return span_field(kind=common_pb2.MEDIA_KIND_VIDEO, second_per_grid_t=second_per_grid_t)


def same_span_twice(request: language_pb2.PrefillRequest) -> None:
    request.prompt.media.append(request.prompt.media[0])


def no_span(request: language_pb2.PrefillRequest) -> None:
    del request.prompt.media[:]


PIXELS = common_pb2.Media(kind=common_pb2.MEDIA_KIND_IMAGE, data=circle())

BAD_PROMPTS = [
    (prompt_field(token_ids=[]), INVALID, "expected one more"),
    (prompt_field(token_ids=[1_024] * 9), INVALID, "below the vocabulary size 1024"),
    (prompt_field(token_ids=[2**32 - 1]), INVALID, "below the vocabulary size 1024"),
    (prompt_field(token_ids=[1] * 5_000), INVALID, "at most 4095"),
    (prompt_field(num_generated_tokens=2**32 - 1), INVALID, "generated"),
    (prompt_field(num_generated_tokens=30), INVALID, "prompt.media[0]"),
    (no_span, INVALID, "placeholder"),
    (same_span_twice, INVALID, "prompt.media[1]"),
    (span_field(offset=0), INVALID, "not the image placeholder"),
    (span_field(offset=2**32 - 1), INVALID, "prompt.media[0]"),
    (span_field(length=2**32 - 1), INVALID, "prompt.media[0]"),
    (span_field(length=0), INVALID, "prompt.media[0].length"),
    (span_field(grid=HUGE_GRID), INVALID, "prompt.media[0]"),
    (span_field(grid=common_pb2.Grid(t=0, h=8, w=8)), INVALID, "prompt.media[0]"),
    (span_field(kind=0), INVALID, "expected an image or a video"),
    (span_field(kind=7), INVALID, "expected an image or a video"),
    (span_field(content_key=""), INVALID, "content_key is empty"),
    (span_field(ticket=None), INVALID, "neither a ticket nor media"),
    (span_field(media=PIXELS), PRECONDITION, "TLLM_MULTIMODAL_DISAGGREGATED=1"),
    (paced(math.nan), INVALID, "second_per_grid_t is nan"),
    (paced(math.inf), INVALID, "second_per_grid_t is inf"),
    (paced(-1.0), INVALID, "second_per_grid_t is -1"),
    (paced(1.0), INVALID, "not the video placeholder"),
    (span_ticket_field(shape=[15, 256]), INVALID, "ticket.shape is [15, 256], expected [16, 256]"),
    (span_ticket_field(dtype=common_pb2.DATA_TYPE_FLOAT16), grpc.StatusCode.DATA_LOSS, "float16"),
    (span_ticket_field(model_fingerprint="other"), PRECONDITION, "'other'"),
    (span_ticket_field(lanes=[]), PRECONDITION, "no lane leads to"),
    (span_ticket_field(lanes=["pigeon"]), PRECONDITION, "no lane leads to"),
    (span_ticket_field(ticket_id="never-announced"), UNKNOWN_TICKET, "never-announced is unknown here"),
    (span_ticket_field(producer_id="gone"), GONE, "the actor was replaced"),
    (span_ticket_field(producer_endpoint=NOWHERE), GONE, "connection lost or refused"),
    (span_ticket_field(producer_endpoint="no endpoint"), INVALID, "expected host:port"),
    (span_ticket_field(producer_endpoint="127.0.0.1:99999"), GONE, ""),
    (span_ticket_field(producer_endpoint="unix:/nowhere"), INVALID, "expected host:port"),
    (span_ticket_field(producer_endpoint=":::::"), INVALID, "expected host:port"),
    (kv_field(shape=[1, 4, 2, 16, 2, 64]), PRECONDITION, "kv_ticket names KV pages"),
    (kv_field(shape=[1]), PRECONDITION, "kv_ticket names KV pages"),
    (kv_field(dtype=common_pb2.DATA_TYPE_FLOAT16), PRECONDITION, "kv_ticket names KV pages"),
    (kv_field(model_fingerprint="other"), PRECONDITION, "weights 'other'"),
    (kv_field(ticket_id=""), INVALID, "ticket_id"),
    (sampling_field(temperature=math.nan), INVALID, "sampling.temperature is nan"),
    (sampling_field(stop_token_ids=[5_000]), INVALID, "below the vocabulary size"),
    (sampling_field(max_tokens=0), INVALID, "sampling.max_tokens is 0"),
    (request_field(request_id=""), INVALID, "request_id"),
    (request_field(request_id="a/../b"), INVALID, "request_id"),
]


@pytest.mark.parametrize(("change", "code", "says"), BAD_PROMPTS, ids=range(len(BAD_PROMPTS)))
async def test_a_prefill_actor_refuses_prompts_and_tickets_that_lie(
    calls: ActorCalls, change: Callable[..., None], code: grpc.StatusCode, says: str
) -> None:
    requests = calls.requests()
    assert requests.prefill is not None
    change(requests.prefill)
    encoded, outcome = await asyncio.gather(
        calls.encode(requests.shares[0].request), calls.run_prefill(requests.prefill, timeout_s=3.0)
    )
    assert encoded.code is grpc.StatusCode.OK
    await calls.release(calls.encoder, requests.shares[0].ticket_ids)
    await check(calls, outcome, code, says)


async def test_a_prefill_that_waits_for_itself_ends_with_its_deadline(calls: ActorCalls) -> None:
    request = calls.requests().prefill
    assert request is not None
    ticket = request.prompt.media[0].ticket
    pointing_at(ticket, calls.prefill)
    ticket.ticket_id = request.kv_ticket.ticket_id
    await check(calls, await calls.run_prefill(request, timeout_s=0.5), TOO_LATE, "")


@pytest.mark.parametrize(
    ("endpoint", "code"),
    [(NOWHERE, GONE), ("", UNKNOWN_TICKET), ("no endpoint", INVALID)],
    ids=["closed", "self", "name"],
)
async def test_a_decode_whose_pages_are_nowhere_ends_soon(
    calls: ActorCalls, endpoint: str, code: grpc.StatusCode
) -> None:
    request = calls.requests().decode
    pointing_at(request.kv_ticket, calls.decode, endpoint)
    await check(calls, await calls.run_decode(request), code, "")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda request: request.ClearField("kv_ticket"), PRECONDITION, "kv_ticket is missing"),
        (lambda request: setattr(request, "router_id", ""), INVALID, "router_id"),
        (lambda request: setattr(request, "router_id", "x" * 129), INVALID, "router_id"),
        (lambda request: request.kv_ticket.shape.append(1), PRECONDITION, "kv_ticket names KV pages"),
        (lambda request: request.prompt.ClearField("token_ids"), INVALID, "prompt"),
    ],
    ids=range(5),
)
async def test_a_decode_actor_refuses_requests_that_lie(
    calls: ActorCalls, change: Callable[..., None], code: grpc.StatusCode, says: str
) -> None:
    request = calls.requests().decode
    change(request)
    await check(calls, await calls.run_decode(request), code, says)


async def test_pages_of_another_prompt_do_not_pass_for_mine(calls: ActorCalls) -> None:
    """A decode for which nobody prefilled: the ticket is never announced, and no page stays."""
    await check(calls, await calls.run_decode(calls.requests().decode), UNKNOWN_TICKET, "is unknown here")


async def test_calls_to_the_wrong_role_are_refused(calls: ActorCalls) -> None:
    requests, stub = calls.requests(), language_pb2_grpc.LanguageServiceStub
    prefill = await calls.call(stub, calls.decode, "Prefill", requests.prefill, 2.0)
    decode = await calls.call(stub, calls.prefill, "Decode", requests.decode, 2.0)
    steps = language_pb2.StreamStepsRequest(router_id="attacker")
    stream = await calls.call(stub, calls.prefill, "StreamSteps", steps, 2.0)
    for outcome in (prefill, decode, stream):
        await check(calls, outcome, PRECONDITION, "role")


async def test_a_stolen_step_stream_costs_no_answer(calls: ActorCalls) -> None:
    """Somebody listens under the router's id: its requests are resumed, and nobody gets a token twice."""
    attacker = calls.attacker
    sampling = {"max_tokens": 200, "min_tokens": 200, "ignore_eos": True}
    request = user_request(image_part(circle()), text_part(QUESTION), **sampling)
    expected = (await attacker.generate(request)).token_ids
    asking = [asyncio.create_task(attacker.generate(request)) for _ in range(3)]
    await asyncio.sleep(0.2)
    router_id = attacker.system.dispatcher._resources.streams.router_id
    stub = language_pb2_grpc.LanguageServiceStub(calls.channel(calls.decode))
    thief = stub.StreamSteps(language_pb2.StreamStepsRequest(router_id=router_id), timeout=10)
    await asyncio.sleep(0.1)
    thief.cancel()
    outcomes = await asyncio.gather(*asking)
    assert [outcome.token_ids for outcome in outcomes] == [expected] * 3
    assert max(outcome.attempts for outcome in outcomes) > 1
    await attacker.check_aftermath()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda span: span.media.ClearField("data"), "prompt.media[0].media"),
        (lambda span: setattr(span.media, "data", b"no picture"), "prompt.media[0].media"),
        (lambda span: setattr(span.media, "kind", common_pb2.MEDIA_KIND_VIDEO), "prompt.media[0].media"),
        (lambda span: setattr(span, "content_key", "0" * 32), "content key"),
        (lambda span: setattr(span.grid, "h", 4) or setattr(span.grid, "w", 16), "makes the grid"),
        (lambda span: span.ClearField("source"), "neither a ticket nor media"),
    ],
    ids=range(6),
)
async def test_a_colocated_actor_refuses_media_that_lie(change: Callable[..., None], says: str) -> None:
    async with InProcessSystem(BUILT_IN_FOLDER, COLOCATED) as system:
        calls = ActorCalls(Attacker(system))
        request = calls.requests().decode
        change(request.prompt.media[0])
        await check(calls, await calls.run_decode(request), INVALID, says)
        await calls.close()
        await calls.attacker.close()


async def test_an_abort_of_strangers_does_nothing(calls: ActorCalls) -> None:
    request = language_pb2.AbortRequest(request_ids=[f"nobody-{number}" for number in range(20_000)])
    stub = language_pb2_grpc.LanguageServiceStub
    outcome = await calls.call(stub, calls.decode, "Abort", request, 2.0)
    await check(calls, outcome, grpc.StatusCode.OK, "")
