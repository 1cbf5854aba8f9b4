"""The life of links over Gloo, how lanes step in for one another, and what is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import torch
from transport_pair import Pair

from triptych.errors import FailedPrecondition, InvalidRequest, Overloaded, TriptychError, Unavailable
from triptych.rpc.status import rpc_errors
from triptych.transport.lane_memory import LaneMemory
from triptych.transport.ticket import Ticket
from triptych.v1.tensor_pb2 import LinkOpen, LinkReady, OpenLinkRequest
from triptych.v1.tensor_pb2_grpc import TensorServiceStub

TENSOR = torch.randn(300, 1000)


def granted(pair: Pair, tensor: torch.Tensor = TENSOR) -> Ticket:
    ticket = pair.ticket(tensor)
    pair.leases.grant(ticket.ticket_id, tensor)
    return ticket


async def fetch(pair: Pair, tensor: torch.Tensor = TENSOR) -> str:
    """The lane that the tensor came over, bit for bit."""
    fetched = await pair.fetcher.fetch(granted(pair, tensor), timeout_s=20)
    assert torch.equal(fetched.tensor, tensor)
    return fetched.lane


def consumer_links(pair: Pair) -> Any:
    return next(lane for lane in pair.fetcher._lanes if lane.name == "gloo").links  # type: ignore[attr-defined]


def producer_links(pair: Pair) -> Any:
    return pair.service._lanes["gloo"].links  # type: ignore[attr-defined]


async def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_one_link_serves_all_fetches_from_a_producer(make_pair: Any) -> None:
    pair = await make_pair(lanes=("gloo",), link_slots=2)
    assert set(await asyncio.gather(*(fetch(pair) for _ in range(12)))) == {"gloo"}
    (link,) = consumer_links(pair)._links.values()
    assert link.key.epoch == 1 and link._sequence == 12 and not link._transfers
    assert producer_links(pair).num_links == 1 and producer_links(pair).num_offers == 0
    await pair.settle()


async def test_nobody_waits_for_a_link_who_has_another_lane(make_pair: Any) -> None:
    pair = await make_pair(lanes=("gloo", "grpc"))
    assert await fetch(pair) == "grpc"
    await until(lambda: bool(consumer_links(pair)._links))
    assert await fetch(pair) == "gloo"
    counters = {each.lane: each for each in pair.fetcher.lane_counters()}
    assert [(each.num_transfers, each.num_bytes, each.num_failures) for each in counters.values()] == [
        (1, TENSOR.nbytes, 0),
        (1, TENSOR.nbytes, 0),
    ]
    assert counters["gloo"].seconds > 0
    await pair.settle()


async def test_an_idle_link_is_closed_and_opened_again(make_pair: Any) -> None:
    pair = await make_pair(lanes=("gloo",), link_idle_s=0.05)
    assert await fetch(pair) == "gloo"
    await until(lambda: not consumer_links(pair)._links and producer_links(pair).num_links == 0)
    assert await fetch(pair) == "gloo"
    assert consumer_links(pair)._epochs[pair.producer_id] == 2
    await pair.settle()


async def test_the_least_recently_used_link_makes_room(make_pair: Any) -> None:
    first, second, third = [await make_pair(lanes=("gloo",), max_links=2) for _ in range(3)]
    fetcher = first.fetcher
    for pair in (first, second, first, third):
        assert (await fetcher.fetch(granted(pair), timeout_s=20)).lane == "gloo"
    assert set(consumer_links(first)._links) == {first.producer_id, third.producer_id}
    held = [link.held() for link in consumer_links(first)._links.values()]
    for hold in held:
        hold.__enter__()
    with pytest.raises(Overloaded, match=r"transport\.max_links"):
        await fetcher.fetch(granted(second), timeout_s=20)
    for hold in held:
        hold.__exit__(None, None, None)
    for pair in (first, second, third):
        await pair.settle()


async def test_a_broken_link_is_not_used_again(make_pair: Any) -> None:
    """The producer gives up the link in the middle: the fetch takes the next lane, later ones a link of a new epoch."""
    pair = await make_pair(lanes=("gloo", "grpc"), lane_retry_s=0.05)
    await fetch(pair)
    await until(lambda: bool(consumer_links(pair)._links))
    (link,) = consumer_links(pair)._links.values()
    waiting = asyncio.create_task(fetch_pending(pair))
    await until(lambda: link.num_users == 1)
    for task in producer_links(pair)._serving:
        task.cancel()
    await until(lambda: not link.is_open)
    assert await waiting == "grpc"
    await asyncio.sleep(0.06)
    lanes = [await fetch(pair)]
    await until(lambda: bool(consumer_links(pair)._links))
    lanes.append(await fetch(pair))
    assert lanes == ["grpc", "gloo"] and consumer_links(pair)._epochs[pair.producer_id] == 2
    await pair.settle()


async def fetch_pending(pair: Pair) -> str:
    """A fetch whose tensor comes only when its link is broken."""
    ticket = pair.ticket(TENSOR)
    pair.leases.expect(ticket.ticket_id)
    task = asyncio.create_task(pair.fetcher.fetch(ticket, timeout_s=20))
    await until(lambda: not next(iter(consumer_links(pair)._links.values())).is_open)
    pair.leases.grant(ticket.ticket_id, TENSOR)
    return (await task).lane


async def test_a_lane_turned_off_in_mid_run_costs_no_fetch(make_pair: Any) -> None:
    pair = await make_pair(lanes=("gloo", "shm", "grpc"), link_timeout_s=2.0)
    await fetch(pair)
    await until(lambda: bool(consumer_links(pair)._links))
    fetches = [asyncio.create_task(fetch(pair, torch.full((200, 1000), float(i)))) for i in range(30)]
    await until(lambda: sum(each.done() for each in fetches) >= 5)
    pair.service.close_links()
    lanes = await asyncio.gather(*fetches)
    assert lanes.count("gloo") >= 5 and await fetch(pair) == "shm"
    gloo = next(each for each in pair.fetcher.lane_counters() if each.lane == "gloo")
    assert gloo.num_failures >= 1
    await pair.settle()
    assert producer_links(pair).num_offers == 0


async def test_a_broken_checksum_degrades_the_pair_for_a_while(make_pair: Any, monkeypatch: Any) -> None:
    pair = await make_pair(lanes=("gloo", "grpc"), lane_retry_s=0.3)
    await fetch(pair)
    await until(lambda: bool(consumer_links(pair)._links))
    links = producer_links(pair)
    offer = links.offer

    def spoiled(data: torch.Tensor) -> Any:
        data = data.clone()
        data[70_001] ^= 1
        return offer(data)

    monkeypatch.setattr(links, "offer", spoiled)
    assert await fetch(pair) == "grpc"
    monkeypatch.setattr(links, "offer", offer)
    assert await fetch(pair) == "grpc", "the lane is left out"
    await asyncio.sleep(0.31)
    assert await fetch(pair) == "gloo", "the lane is tried again"
    counters = {each.lane: each for each in pair.fetcher.lane_counters()}
    assert counters["gloo"].num_failures == 1 and counters["grpc"].num_failures == 0
    await pair.settle()


async def test_a_producer_that_can_not_open_links_is_tried_rarely(make_pair: Any, monkeypatch: Any) -> None:
    pair = await make_pair(lanes=("gloo", "grpc"), lane_retry_s=30.0)
    num_calls = 0

    async def refuse(*arguments: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        raise Unavailable("no")

    monkeypatch.setattr(producer_links(pair), "serve", refuse)
    for _ in range(5):
        assert await fetch(pair) == "grpc"
        await until(lambda: not consumer_links(pair)._opening)
    assert num_calls == 1
    await pair.settle()


@pytest.fixture
async def calls() -> AsyncIterator[list[Any]]:
    made: list[Any] = []
    yield made
    for call in made:
        call.cancel()


OPENING = {"lane": "gloo", "consumer_id": "prefill-1", "epoch": 1, "consumer_host": "127.0.0.1"}
BAD_OPENINGS: list[tuple[dict[str, Any], type[TriptychError], str]] = [
    ({"lane": "pigeon"}, FailedPrecondition, "not served"),
    ({"lane": "grpc"}, FailedPrecondition, "has no links"),
    ({"consumer_id": "../x"}, InvalidRequest, "consumer_id"),
    ({"consumer_host": "metadata.internal"}, InvalidRequest, "IP address"),
    ({"epoch": 0}, InvalidRequest, "the last epoch was 0"),
    ({"producer_id": "encoder-before"}, TriptychError, "not here"),
]


async def open_link(pair: Pair, calls: list[Any], **changes: Any) -> Any:
    stub: Any = TensorServiceStub(pair.channels.get(pair.endpoint))
    call = stub.OpenLink()
    calls.append(call)
    await call.write(OpenLinkRequest(open=LinkOpen(**{**OPENING, "producer_id": pair.producer_id, **changes})))
    return call


@pytest.mark.parametrize(("changes", "error", "message"), BAD_OPENINGS)
async def test_bad_openings_are_refused(
    make_pair: Any, calls: list[Any], changes: dict[str, Any], error: type[TriptychError], message: str
) -> None:
    pair = await make_pair(lanes=("gloo", "grpc"))
    call = await open_link(pair, calls, **changes)
    with pytest.raises(error, match=message), rpc_errors():
        assert await call.read() is not grpc.aio.EOF
    assert producer_links(pair).num_links == 0


async def test_a_consumer_that_opens_and_never_comes_is_let_go(make_pair: Any, calls: list[Any]) -> None:
    pair = await make_pair(lanes=("gloo",), link_timeout_s=0.2)
    call = await open_link(pair, calls)
    assert (await call.read()).meeting.store_port > 0
    with pytest.raises(Unavailable, match=r"transport\.link_timeout_s"), rpc_errors():
        await call.read()
    assert producer_links(pair).num_links == 0
    # Its epoch is used up.
    with pytest.raises(InvalidRequest, match="the last epoch was 1"), rpc_errors():
        await (await open_link(pair, calls)).read()
    assert await fetch(pair) == "gloo"


async def test_links_are_bounded_at_the_producer(make_pair: Any, calls: list[Any]) -> None:
    pair = await make_pair(lanes=("gloo", "grpc"), max_links=1)
    call = await open_link(pair, calls)
    assert (await call.read()).HasField("meeting")
    with pytest.raises(Overloaded, match=r"transport\.max_links"), rpc_errors():
        await (await open_link(pair, calls, consumer_id="prefill-2")).read()


async def test_what_is_not_a_beginning_is_refused(make_pair: Any, calls: list[Any]) -> None:
    pair = await make_pair(lanes=("gloo",))
    stub: Any = TensorServiceStub(pair.channels.get(pair.endpoint))
    call = stub.OpenLink()
    calls.append(call)
    await call.write(OpenLinkRequest(ready=LinkReady(transfer_id="x")))
    with pytest.raises(InvalidRequest, match="begins with `open`"), rpc_errors():
        await call.read()


async def test_a_transfer_that_is_not_on_offer_is_refused_and_the_link_goes_on(make_pair: Any) -> None:
    pair = await make_pair(lanes=("gloo",))
    assert await fetch(pair) == "gloo"
    (link,) = consumer_links(pair)._links.values()
    with pytest.raises(Unavailable, match="withdrawn"):
        await link.receive("nothing", torch.empty(4))
    assert link.is_open and await fetch(pair) == "gloo"
    await pair.settle()


def test_lane_memory() -> None:
    now = 0.0
    memory = LaneMemory(10.0, clock=lambda: now)
    assert not memory.is_left_out("encoder-1", "nccl")
    for pause_s in (10, 20, 40, 80, 80):
        assert memory.note_failure("encoder-1", "nccl") == pause_s
        assert memory.is_left_out("encoder-1", "nccl")
        assert not memory.is_left_out("encoder-1", "shm") and not memory.is_left_out("encoder-2", "nccl")
        now += pause_s - 0.1
        assert memory.is_left_out("encoder-1", "nccl")
        now += 0.2
        assert not memory.is_left_out("encoder-1", "nccl")
    memory.note_success("encoder-1", "nccl")
    assert memory.note_failure("encoder-1", "nccl") == 10
    for index in range(5_000):
        memory.note_failure(f"encoder-{index}", "nccl")
    assert len(memory._failures) <= 4_096
