"""Calls to LLM actors that end before their answer does: nothing is held then, and whoever waits is told."""

from __future__ import annotations

import asyncio
import sys

import pytest
from engine_helpers import Model
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_helpers import (
    TIMEOUT_S,
    Cluster,
    decode_request,
    error_of,
    sampling,
    wait_for_tokens,
)

from triptych.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Unavailable,
)
from triptych.v1 import admin_pb2, common_pb2, language_pb2


@pytest.mark.parametrize("how", ["cancel", "deadline", "abort"])
@pytest.mark.parametrize("when", ["embeddings", "kv pages", "decoding"])
async def test_a_call_that_ends_early_holds_nothing(model: Model, cluster: Cluster, when: str, how: str) -> None:
    role = "decode" if when == "kv pages" else "prefill_decode"
    running, prefiller = await cluster.actor(role), await cluster.actor("prefill")
    router = await cluster.router(running)
    case = model.case("one image")
    ticket = cluster.kv_ticket(prefiller, case.prompt.num_tokens) if when == "kv pages" else None
    request = decode_request(
        cluster,
        case,
        "r",
        prompt=cluster.prompt(case, grant=when == "decoding"),
        sampling=sampling(480),
        kv_ticket=ticket,
    )
    call = running.language.Decode(request, timeout=0.2 if how == "deadline" else TIMEOUT_S)
    if when == "decoding":
        await wait_for_tokens(router.tokens, "r")
    else:
        await asyncio.sleep(0.05)
    assert (await running.ask()).language.waiting_requests + (await running.ask()).language.running_requests == 1
    if how == "cancel":
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    if how == "abort":
        await running.language.Abort(language_pb2.AbortRequest(request_ids=["r", "unknown"]))
        assert isinstance(await error_of(call), Cancelled)
    if how == "deadline":
        assert isinstance(await error_of(call), DeadlineExceeded)
    await running.wait_released()
    if how == "abort" and when == "decoding":
        await router.answer("r")
        assert router.finish_reasons["r"] == common_pb2.FINISH_REASON_ABORTED


async def test_failed_embedding_fails_prefill_and_waiting_decode(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await cluster.actor("prefill"), await cluster.actor("decode")
    await cluster.router(decoder)
    case = model.case("two images")
    prompt = cluster.prompt(case, grant=False)
    ticket = cluster.kv_ticket(prefiller, case.prompt.num_tokens)
    decode = decoder.language.Decode(decode_request(cluster, case, "r", prompt=prompt, kv_ticket=ticket))
    prefill = prefiller.language.Prefill(
        language_pb2.PrefillRequest(request_id="r", prompt=prompt, sampling=sampling(), kv_ticket=ticket)
    )
    await asyncio.sleep(0.05)
    cluster.producer.leases.fail(prompt.media[1].ticket.ticket_id, InvalidRequest("not a picture", field="media"))
    for call in (prefill, decode):
        error = await error_of(call)
        assert isinstance(error, InvalidRequest)
        assert error.message == "not a picture"
    await prefiller.wait_released()
    await decoder.wait_released()


async def test_router_without_a_stream_fails_after_the_grace(model: Model, cluster: Cluster) -> None:
    running = await cluster.actor("prefill_decode")
    error = await error_of(running.language.Decode(decode_request(cluster, model.case("text"), "r")))
    assert isinstance(error, Unavailable)
    assert "step stream" in error.message
    await running.wait_released()


async def test_broken_stream_fails_requests_that_have_begun(model: Model, cluster: Cluster) -> None:
    running = await cluster.actor("prefill_decode")
    router = await cluster.router(running)
    call = running.language.Decode(decode_request(cluster, model.case("text"), "r", sampling=sampling(400)))
    await wait_for_tokens(router.tokens, "r")
    await router.close()
    assert isinstance(await error_of(call), Unavailable)
    await running.wait_released()


async def test_drain_lets_work_finish_and_takes_no_more(model: Model, cluster: Cluster) -> None:
    running = await cluster.actor("prefill_decode")
    router = await cluster.router(running)
    call = running.language.Decode(decode_request(cluster, model.case("text"), "r", sampling=sampling(300)))
    await wait_for_tokens(router.tokens, "r")
    draining = asyncio.create_task(running.actor.drain(10))
    await asyncio.sleep(0.01)
    error = await error_of(running.language.Decode(decode_request(cluster, model.case("text"), "late")))
    assert isinstance(error, Unavailable)
    assert (await running.ask()).state == admin_pb2.ACTOR_STATE_DRAINING
    assert (await call).num_tokens == 300
    assert await draining


async def test_stop_ends_calls_with_unavailable(model: Model, cluster: Cluster) -> None:
    running = await cluster.actor("prefill_decode")
    router = await cluster.router(running)
    call = running.language.Decode(decode_request(cluster, model.case("text"), "r", sampling=sampling(450)))
    await wait_for_tokens(router.tokens, "r")
    assert await running.actor.ping() == running.info.actor_id
    await running.actor.stop()
    assert isinstance(await error_of(call), Unavailable)
    with pytest.raises(Unavailable):
        await running.actor.ping()
    await running.actor.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_that_ends_by_itself_fails_its_calls_and_the_actors_health(
    model: Model, cluster: Cluster
) -> None:
    running = await cluster.actor("prefill_decode")
    router = await cluster.router(running)
    call = running.language.Decode(decode_request(cluster, model.case("text"), "r", sampling=sampling(450)))
    await wait_for_tokens(router.tokens, "r")
    stage = running.actor._parts.stage
    assert stage is not None
    stage._engine.call(sys.exit)
    assert isinstance(await error_of(call), Unavailable)
    # As if it had died: whoever asks anew reaches nobody.
    watch = running.actor._parts.engine_watch
    assert watch is not None
    await asyncio.wait_for(watch, timeout=5)
    health = health_pb2_grpc.HealthStub(running.channel)
    assert isinstance(await error_of(health.Check(health_pb2.HealthCheckRequest(), timeout=5)), Unavailable)
    with pytest.raises(Unavailable):
        await running.actor.ping()
