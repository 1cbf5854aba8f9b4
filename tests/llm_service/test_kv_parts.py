"""KV pages that leave in parts while the prompt is still prefilled: the same tokens, and nothing held at the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from engine_helpers import CASES, MakeEngine, Model, answer, greedy
from kv_helpers import (
    in_parts,
    num_transfers,
    prefill_of,
    prefill_sequence,
    until,
    whole_pages,
)
from service_helpers import (
    PAGE_SIZE,
    TIMEOUT_S,
    Cluster,
    RunningActor,
    decode_request,
    error_of,
    make_config,
)

from llm_service.sequence import Sequence, SequenceState
from triptych.errors import InvalidRequest, Unavailable
from triptych.transport.parts import parts_of
from triptych.transport.ticket import Ticket
from triptych.v1 import tensor_pb2, tensor_pb2_grpc

NAME = "video between images"


@pytest.mark.parametrize("pages_per_part", [1, 2, 3, 50])
@pytest.mark.parametrize("layers_per_part", [0, 1, 2])
@pytest.mark.parametrize("prefill_chunk_tokens", [5, 16, 1024])
def test_parts_are_the_whole(
    model: Model, make_engine: MakeEngine, pages_per_part: int, layers_per_part: int, prefill_chunk_tokens: int
) -> None:
    for name in CASES:
        case = model.case(name)
        engine = make_engine(prefill_chunk_tokens=prefill_chunk_tokens)
        whole = prefill_sequence(engine, case)
        engine.run([whole])
        expected = whole_pages(engine, whole)
        engine = make_engine(prefill_chunk_tokens=prefill_chunk_tokens)
        sequence = prefill_sequence(engine, case, pages_per_part, layers_per_part)
        engine.run([sequence])
        assert torch.equal(whole_pages(engine, sequence), expected)
        assert engine.pool.num_held_pages == 0


def test_a_part_leaves_when_its_last_token_is_computed(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(prefill_chunk_tokens=8, page_size=4)
    sequence = prefill_sequence(engine, model.case("text"), rows=3)  # 37 tokens, 12 a part
    engine.add(sequence)
    num_parts = []
    while sequence.state is not SequenceState.FINISHED:
        engine.step()
        num_parts.append(sum(len(output.kv_parts) for output in engine.outputs))
    steps = [num for index, num in enumerate(num_parts) if index == 0 or num != num_parts[index - 1]]
    assert steps in ([0, 1, 2, 3], [1, 2, 3]) and len(num_parts) >= 5


@pytest.mark.parametrize("layers_per_part", [0, 1])
def test_preempted_between_two_parts(model: Model, make_engine: MakeEngine, layers_per_part: int) -> None:
    """No part leaves twice, and those computed again are those that were to come."""
    case = model.case(NAME)
    engine = make_engine(prefill_chunk_tokens=8, page_size=4, enable_prefix_cache=False)
    sequence = prefill_sequence(engine, case, rows=2, layers=layers_per_part)
    engine.add(sequence)
    while not any(output.kv_parts for output in engine.outputs):
        engine.step()
    engine.scheduler._preempt(sequence)
    engine.run()
    decode = Sequence("decode", case.prompt, greedy(), embeddings=None)
    decode.take_over(case.expected[0], whole_pages(engine, sequence))
    engine.run([decode])
    assert answer(decode) == case.expected


async def pair(cluster: Cluster) -> tuple[RunningActor, RunningActor]:
    config = make_config(cluster.model, overlap_min_tokens=1, prefill_chunk_tokens=8)
    return await cluster.actor("prefill", config), await cluster.actor("decode", config)


@pytest.mark.parametrize("rows", [1, 2, 1000])
async def test_tokens_of_all_prompts_at_once(model: Model, cluster: Cluster, rows: int) -> None:
    prefiller, decoder = await pair(cluster)
    router = await cluster.router(decoder)
    requests = [
        decode_request(
            cluster,
            model.case(name),
            name.replace(" ", "-"),
            kv_ticket=in_parts(cluster, prefiller, model.case(name).prompt.num_tokens, rows),
        )
        for name in CASES
    ]
    decodes = [decoder.language.Decode(request, timeout=TIMEOUT_S) for request in requests]
    prefills = [prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S) for request in requests]
    firsts = await asyncio.gather(*prefills)
    await asyncio.gather(*decodes)
    for name, first in zip(CASES, firsts, strict=True):
        assert (first.first_token_id, *await router.answer(name.replace(" ", "-"))) == model.case(name).expected
    await prefiller.wait_released()
    await decoder.wait_released()


async def test_pages_travel_while_a_picture_is_still_to_come(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await pair(cluster)
    router = await cluster.router(decoder)
    case = model.case("two images")
    prompt = cluster.prompt(case, grant=False)
    ticket = in_parts(cluster, prefiller, case.prompt.num_tokens)
    request = decode_request(cluster, case, "r", prompt=prompt, kv_ticket=ticket)
    decode = asyncio.ensure_future(decoder.language.Decode(request, timeout=TIMEOUT_S))
    prefill = asyncio.ensure_future(prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S))
    cluster.producer.leases.grant(prompt.media[0].ticket.ticket_id, case.embeddings[0])
    num_full = case.prompt.media[1].offset // PAGE_SIZE
    assert num_full > 1

    async def have_come() -> bool:
        return await num_transfers(decoder) == num_full

    await until(have_come)
    assert not prefill.done()
    cluster.producer.leases.grant(prompt.media[1].ticket.ticket_id, case.embeddings[1])
    first = await prefill
    assert (await decode).kv_lane == "grpc"
    assert (first.first_token_id, *await router.answer("r")) == case.expected
    await prefiller.wait_released()
    await decoder.wait_released()


async def test_only_pages_that_the_decode_actor_lacks_travel(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await pair(cluster)
    router = await cluster.router(decoder)
    case = model.case("text")  # 37 tokens: 4 full pages and one more
    for request_id, num_parts in (("first", 3), ("second", 3 + 1)):
        ticket = in_parts(cluster, prefiller, case.prompt.num_tokens, rows=2)
        request = decode_request(cluster, case, request_id, kv_ticket=ticket)
        decode = decoder.language.Decode(request, timeout=TIMEOUT_S)
        first = await prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S)
        await decode
        assert (first.first_token_id, *await router.answer(request_id)) == case.expected
        assert await num_transfers(decoder) == num_parts
        await prefiller.wait_released()


@pytest.mark.parametrize("how", ["cancel both", "decode cancelled", "encoder fails"])
async def test_what_ends_between_two_parts_holds_nothing(model: Model, cluster: Cluster, how: str) -> None:
    prefiller, decoder = await pair(cluster)
    await cluster.router(decoder)
    case = model.case("two images")
    prompt = cluster.prompt(case, grant=False)
    ticket = in_parts(cluster, prefiller, case.prompt.num_tokens)
    request = decode_request(cluster, case, "r", prompt=prompt, kv_ticket=ticket)
    decode = decoder.language.Decode(request, timeout=TIMEOUT_S)
    prefill = prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S)
    cluster.producer.leases.grant(prompt.media[0].ticket.ticket_id, case.embeddings[0])

    async def has_come() -> bool:
        return await num_transfers(decoder) > 0

    await until(has_come)
    second = prompt.media[1].ticket.ticket_id
    if how == "encoder fails":
        cluster.producer.leases.fail(second, Unavailable("the encoder has ended"))
        for call in (prefill, decode):
            assert isinstance(await error_of(call), Unavailable)
    else:
        decode.cancel()
        if how == "cancel both":
            prefill.cancel()
        else:
            cluster.producer.leases.grant(second, case.embeddings[1])
        await asyncio.gather(decode, prefill, return_exceptions=True)
    await decoder.wait_released()
    info = await prefiller.wait_released()
    assert info.leases.pending_tickets == 0


async def test_a_router_that_releases_the_ticket_frees_all_parts(model: Model, cluster: Cluster) -> None:
    """Nobody decodes: the pages wait under leases until the one name that the router knows is released."""
    prefiller, _ = await pair(cluster)
    case = model.case("text")
    ticket = in_parts(cluster, prefiller, case.prompt.num_tokens)
    request = prefill_of(decode_request(cluster, case, "r", kv_ticket=ticket))
    await prefiller.language.Prefill(request, timeout=TIMEOUT_S)
    info = await prefiller.ask()
    assert info.language.held_pages == 5 and info.leases.held_leases == 5 + 1
    stub: Any = tensor_pb2_grpc.TensorServiceStub(prefiller.channel)
    await stub.Release(tensor_pb2.ReleaseRequest(ticket_ids=[ticket.ticket_id]))
    await prefiller.wait_released()


async def test_a_ticket_in_too_many_parts_is_refused(model: Model, cluster: Cluster) -> None:
    prefiller, _ = await pair(cluster)
    ticket = in_parts(cluster, prefiller, 37)
    ticket.shape[0] = 5_000
    with pytest.raises(InvalidRequest, match="kv_part_bytes"):
        parts_of(Ticket.from_proto(ticket))
