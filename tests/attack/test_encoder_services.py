"""Calls to the encoder's services, past the router, with tickets and media that lie."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from actor_calls import GONE, HUGE_GRID, INVALID, PRECONDITION, UNKNOWN_TICKET, ActorCalls, check, set_fields
from attack_helpers import QUESTION, RIGHT_ANSWER, circle, image_part, text_part, user_request

from triptych.v1 import common_pb2, encoder_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


def no_items(request: encoder_pb2.EncodeRequest) -> None:
    del request.items[:]


def same_ticket_twice(request: encoder_pb2.EncodeRequest) -> None:
    request.items.append(request.items[0])


def too_many_items(request: encoder_pb2.EncodeRequest) -> None:
    for index in range(65):
        item = request.items.add()
        item.CopyFrom(request.items[0])
        item.ticket.ticket_id = f"t{index}"


def ticket_field(**values: Any) -> Callable[[encoder_pb2.EncodeRequest], None]:
    return lambda request: set_fields(request.items[0].ticket, values)


def no_field(name: str) -> Callable[[encoder_pb2.EncodeRequest], None]:
    return lambda request: request.items[0].ClearField(name)


def media_field(**values: Any) -> Callable[[encoder_pb2.EncodeRequest], None]:
    return lambda request: request.items[0].media.MergeFrom(common_pb2.Media(**values))


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (no_items, INVALID, "expected at least one"),
        (same_ticket_twice, INVALID, "same ticket_id"),
        (too_many_items, INVALID, "limits.max_media_items"),
        (no_field("ticket"), INVALID, "ticket_id"),
        (ticket_field(ticket_id="a b"), INVALID, "ticket_id"),
        (ticket_field(ticket_id="x" * 129), INVALID, "expected 1 to 128"),
        (ticket_field(producer_id="encoder-of-somebody-else"), GONE, "producer_id is encoder-of-somebody-else"),
        (ticket_field(model_fingerprint="other"), PRECONDITION, "model_fingerprint is 'other'"),
        (ticket_field(shape=[17, 256]), INVALID, "expects float32[17, 256]"),
        (ticket_field(shape=[]), INVALID, "0 dimensions"),
        (ticket_field(shape=[1] * 9), INVALID, "9 dimensions"),
        (ticket_field(shape=[2**63, 2**63]), INVALID, "is over"),
        (ticket_field(dtype=common_pb2.DATA_TYPE_BFLOAT16), INVALID, "expects bfloat16"),
        (ticket_field(dtype=0), INVALID, "data type 0 is unknown"),
        (ticket_field(dtype=99), INVALID, "data type 99 is unknown"),
        (ticket_field(grid=common_pb2.Grid()), INVALID, "grid"),
        (ticket_field(grid=common_pb2.Grid(t=1, h=3, w=5)), INVALID, "in multiples of 2"),
        (ticket_field(grid=HUGE_GRID), INVALID, "expects float32[16, 256]"),
        (ticket_field(grid=common_pb2.Grid(t=1, h=4, w=16)), INVALID, "makes the grid"),
        (ticket_field(content_key=""), INVALID, "content_key is empty"),
        (ticket_field(content_key="0" * 32), INVALID, "content key"),
        (ticket_field(lanes=["x"] * 17), INVALID, "at most 16"),
        (ticket_field(producer_endpoint=""), INVALID, "producer_endpoint="),
        (no_field("media"), INVALID, "media"),
        (media_field(kind=common_pb2.MEDIA_KIND_VIDEO), INVALID, "media"),
        (media_field(data=b"other"), INVALID, "media"),
    ],
    ids=range(26),
)
async def test_an_encoder_refuses_tickets_and_media_that_lie(
    calls: ActorCalls, change: Callable[..., None], code: grpc.StatusCode, says: str
) -> None:
    request = calls.requests().shares[0].request
    change(request)
    await check(calls, await calls.encode(request), code, says)


async def test_content_that_does_not_match_its_key_is_never_cached(calls: ActorCalls) -> None:
    request = calls.requests().shares[0].request
    request.items[0].media.data += b"!"
    request.items[0].ticket.content_key = "f" * 32
    for _ in range(2):
        await check(calls, await calls.encode(request), INVALID, "content key")


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"ticket_id": "unknown"}, UNKNOWN_TICKET, "unknown here, 0.2 s after"),
        ({"ticket_id": ""}, INVALID, "ticket_id"),
        ({"ticket_id": "../x"}, INVALID, "ticket_id"),
        ({"producer_id": "other"}, UNKNOWN_TICKET, "producer 'other' is not here"),
        ({"producer_id": "x" * 2**20}, UNKNOWN_TICKET, "is not here"),
        ({"lane": "pigeon"}, PRECONDITION, "lane 'pigeon' is not served here"),
        ({"lane": "gloo"}, PRECONDITION, "lane 'gloo' is not served here"),
        ({"lane": ""}, PRECONDITION, "is not served here"),
        ({"first_row": 17}, INVALID, "first_row=17 is outside a tensor of 16 rows"),
        ({"first_row": 2**32 - 1}, INVALID, "first_row=4294967295"),
        ({"first_row": 17, "lane": "shm"}, INVALID, "first_row=17"),
    ],
    ids=str,
)
async def test_a_fetch_that_asks_for_what_is_not_there_is_refused(
    calls: ActorCalls, fields: dict[str, Any], code: grpc.StatusCode, says: str
) -> None:
    request = calls.requests().shares[0].request
    assert (await calls.encode(request)).code is grpc.StatusCode.OK
    ticket_id = request.items[0].ticket.ticket_id
    outcome = await calls.fetch(calls.encoder, **{"ticket_id": ticket_id} | fields)
    whole = await calls.fetch(calls.encoder, ticket_id=ticket_id)
    nothing = await calls.fetch(calls.encoder, ticket_id=ticket_id, first_row=16)
    assert (whole.code, nothing.code) == (grpc.StatusCode.OK, grpc.StatusCode.OK)
    await calls.release(calls.encoder, [ticket_id])
    await check(calls, outcome, code, says)


async def test_fetches_that_never_end_fill_the_slab_and_stop_nobody(calls: ActorCalls) -> None:
    """Each holds a piece of the shared memory for as long as its call lives; others take the lane grpc."""
    request = calls.requests().shares[0].request
    await calls.encode(request)
    ticket_id = request.items[0].ticket.ticket_id
    hoarders = [
        asyncio.create_task(calls.fetch(calls.encoder, ticket_id=ticket_id, lane="shm", timeout_s=10))
        for _ in range(40)
    ]
    await asyncio.sleep(0.2)
    outcome = await calls.attacker.generate(user_request(image_part(circle()), text_part(QUESTION)))
    assert outcome.text == RIGHT_ANSWER
    codes = {task.result().code for task in hoarders if task.done()}
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED} and not all(task.done() for task in hoarders)
    for task in hoarders:
        task.cancel()
    await asyncio.wait(hoarders)
    await calls.release(calls.encoder, [ticket_id])
    await calls.attacker.check_aftermath()


@pytest.mark.parametrize("ids", [[""], ["a b"], ["x" * 200], ["x"] * 5_000], ids=["empty", "odd", "long", "many"])
async def test_a_release_of_what_can_be_no_ticket_is_refused(calls: ActorCalls, ids: list[str]) -> None:
    await check(calls, await calls.release(calls.encoder, ids), INVALID, "ticket")


async def test_a_release_by_somebody_else_costs_a_retry_and_no_answer(calls: ActorCalls) -> None:
    """Ticket ids are secrets of 128 bits; whoever learns one can still do no more than this."""
    requests = calls.requests()
    request = requests.shares[0].request
    await calls.encode(request)
    await calls.release(calls.encoder, [request.items[0].ticket.ticket_id, "unknown"])
    outcome = await calls.fetch(calls.encoder, ticket_id=request.items[0].ticket.ticket_id)
    await check(calls, outcome, UNKNOWN_TICKET, "was released")
