"""LLM actors over gRPC: the same tokens as transformers through prefill, transfer and decode, and clear refusals."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from engine_helpers import CASES, Case, Model
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_helpers import ROUTER_ID, TIMEOUT_S, Cluster, FakeEmbedder, RunningActor, make_config, sampling

from llm_service.actor import LlmActor
from triptych.errors import (
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestTooLarge,
    TriptychError,
    Unavailable,
)
from triptych.rpc.status import from_rpc_error
from triptych.switch import SWITCH
from triptych.v1 import admin_pb2, common_pb2, language_pb2


@pytest.fixture
async def cluster(model: Model, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv(SWITCH, "1")
    async with Cluster(model) as cluster:
        yield cluster


async def error_of(call: Any) -> TriptychError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def decode_request(cluster: Cluster, case: Case, request_id: str, **fields: Any) -> language_pb2.DecodeRequest:
    prompt = fields.pop("prompt", None) or cluster.prompt(case)
    values = {"sampling": sampling()} | fields
    return language_pb2.DecodeRequest(request_id=request_id, router_id=ROUTER_ID, prompt=prompt, **values)


async def test_prefill_here_decode_there(model: Model, cluster: Cluster) -> None:
    """All cases at once over both actors; decode is called before the prefill has begun."""
    prefiller, decoder = await cluster.actor("prefill"), await cluster.actor("decode")
    router = await cluster.router(decoder)
    decodes, prefills = [], []
    for name in CASES:
        case = model.case(name)
        prompt = cluster.prompt(case)
        ticket = cluster.kv_ticket(prefiller, case.prompt.num_tokens)
        request = decode_request(cluster, case, name.replace(" ", "-"), prompt=prompt, kv_ticket=ticket)
        decodes.append(decoder.language.Decode(request, timeout=TIMEOUT_S))
        prefills.append(
            language_pb2.PrefillRequest(
                request_id=request.request_id, prompt=prompt, sampling=sampling(), kv_ticket=ticket
            )
        )
    await asyncio.sleep(0.05)
    firsts = await asyncio.gather(*(prefiller.language.Prefill(request, timeout=TIMEOUT_S) for request in prefills))
    results = await asyncio.gather(*decodes)
    for name, first, result in zip(CASES, firsts, results, strict=True):
        assert (first.first_token_id, *await router.answer(name.replace(" ", "-"))) == model.case(name).expected
        assert result.num_tokens == 63
        assert result.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert result.kv_lane == "grpc"
        assert not result.HasField("prefill")
        assert list(first.embedding_lanes) == ["grpc"] * len(model.case(name).prompt.media)
    info = await prefiller.wait_released()
    assert info.language.accepted_embeddings == 7
    assert info.leases.granted_leases == len(CASES)
    assert info.leases.pending_tickets == 0
    await decoder.wait_released()
    assert cluster.producer.leases.counters().held_leases == 0
    assert len(router.messages) < 150, "one message a step, not one a token"


async def test_prefill_and_decode_on_one_actor(model: Model, cluster: Cluster) -> None:
    running = await cluster.actor("prefill_decode")
    router = await cluster.router(running)
    requests = {name: decode_request(cluster, model.case(name), name.replace(" ", "-")) for name in CASES}
    calls = [running.language.Decode(request, timeout=TIMEOUT_S) for request in requests.values()]
    for name, result in zip(CASES, await asyncio.gather(*calls), strict=True):
        assert tuple(await router.answer(name.replace(" ", "-"))) == model.case(name).expected
        assert result.prefill.first_token_id == model.case(name).expected[0]
        assert result.num_tokens == 64
    again = await running.language.Decode(decode_request(cluster, model.case("video"), "again"), timeout=TIMEOUT_S)
    assert tuple(await router.answer("again")) == model.case("video").expected
    assert again.prefill.cached_prompt_tokens == (model.case("video").prompt.num_tokens - 1) // 8 * 8
    await running.wait_released()


async def test_pages_in_the_decode_actors_cache_do_not_travel(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await cluster.actor("prefill"), await cluster.actor("decode")
    router = await cluster.router(decoder)
    case = model.case("two images")
    for request_id in ("first", "second"):
        ticket = cluster.kv_ticket(prefiller, case.prompt.num_tokens)
        prompt = cluster.prompt(case)
        prefill = language_pb2.PrefillRequest(
            request_id=request_id, prompt=prompt, sampling=sampling(), kv_ticket=ticket
        )
        first = await prefiller.language.Prefill(prefill, timeout=TIMEOUT_S)
        decode = decode_request(cluster, case, request_id, prompt=prompt, kv_ticket=ticket)
        await decoder.language.Decode(decode, timeout=TIMEOUT_S)
        assert (first.first_token_id, *await router.answer(request_id)) == case.expected
    assert first.cached_prompt_tokens > 0


async def test_first_token_that_ends_the_request(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await cluster.actor("prefill"), await cluster.actor("decode")
    router = await cluster.router(decoder)
    case = model.case("text")
    ticket = cluster.kv_ticket(prefiller, case.prompt.num_tokens)
    fields = {"prompt": cluster.prompt(case), "sampling": sampling(1), "kv_ticket": ticket}
    decode = decoder.language.Decode(decode_request(cluster, case, "r", **fields), timeout=TIMEOUT_S)
    first = await prefiller.language.Prefill(language_pb2.PrefillRequest(request_id="r", **fields), timeout=TIMEOUT_S)
    result = await decode
    assert first.finish_reason == result.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert (result.num_tokens, await router.answer("r")) == (0, [])
    await prefiller.wait_released()


async def test_seeded_sampling_is_the_same_on_any_route(model: Model, cluster: Cluster) -> None:
    prefiller, decoder, both = [await cluster.actor(role) for role in ("prefill", "decode", "prefill_decode")]
    router, router_of_both = await cluster.router(decoder), await cluster.router(both)
    case = model.case("one image")
    parameters = sampling(40, temperature=1.0, top_p=0.9, seed=5)
    await both.language.Decode(decode_request(cluster, case, "one", sampling=parameters), timeout=TIMEOUT_S)
    ticket = cluster.kv_ticket(prefiller, case.prompt.num_tokens)
    fields = {"prompt": cluster.prompt(case), "sampling": parameters, "kv_ticket": ticket}
    first = await prefiller.language.Prefill(language_pb2.PrefillRequest(request_id="two", **fields))
    await decoder.language.Decode(decode_request(cluster, case, "two", **fields), timeout=TIMEOUT_S)
    tokens = [first.first_token_id, *await router.answer("two")]
    assert tokens == await router_of_both.answer("one")
    # Resumed: the first 15 tokens are part of the prompt now.
    resumed = cluster.prompt(case)
    resumed.token_ids.extend(tokens[:15])
    parameters = sampling(25, temperature=1.0, top_p=0.9, seed=5)
    await both.language.Decode(decode_request(cluster, case, "three", prompt=resumed, sampling=parameters))
    assert await router_of_both.answer("three") == tokens[15:]


async def test_roles_refuse_each_others_calls(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await cluster.actor("prefill"), await cluster.actor("decode")
    case = model.case("text")
    error = await error_of(prefiller.language.Decode(decode_request(cluster, case, "r")))
    assert isinstance(error, FailedPrecondition)
    assert "role prefill" in error.message
    request = language_pb2.PrefillRequest(request_id="r", prompt=cluster.prompt(case), sampling=sampling())
    assert isinstance(await error_of(decoder.language.Prefill(request)), FailedPrecondition)
    error = await error_of(decoder.language.Decode(decode_request(cluster, case, "r")))
    assert isinstance(error, FailedPrecondition)
    assert error.field == "kv_ticket"


async def test_the_switch_refuses_pixels(model: Model, cluster: Cluster) -> None:
    case = model.case("one image")
    running = await cluster.actor("prefill_decode", embedder=FakeEmbedder([case]))
    info = await running.ask()
    assert info.multimodal_disaggregated
    assert info.weights.num_visual_parameters == 0
    assert info.weights.num_language_parameters == sum(item.numel() for item in model.language.parameters())
    error = await error_of(
        running.language.Decode(decode_request(cluster, case, "r", prompt=cluster.prompt(case, raw=True)))
    )
    assert isinstance(error, FailedPrecondition)
    assert f"{SWITCH}=1" in error.message
    assert "mode: colocated" in error.message
    assert error.field == "prompt.media[0].media"


async def test_colocated_actor_takes_pixels(model: Model, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    case = model.case("two images")
    embedder = FakeEmbedder([case])
    running = await cluster.actor("prefill_decode", embedder=embedder)
    router = await cluster.router(running)
    result = await running.language.Decode(decode_request(cluster, case, "r", prompt=cluster.prompt(case, raw=True)))
    assert tuple(await router.answer("r")) == case.expected
    assert result.prefill.encode_s == 0.5
    info = await running.ask()
    assert not info.multimodal_disaggregated
    assert info.weights.num_visual_parameters == 1_000
    await running.actor.stop()
    assert embedder.is_closed


async def test_no_tower_and_no_switch_is_a_configuration_error(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    with pytest.raises(ConfigurationError, match=SWITCH):
        await LlmActor(make_config(model), "decode").start()


def test_an_llm_actor_imports_no_transformers_and_no_ray() -> None:
    code = "import sys, llm_service.actor; assert not {'transformers', 'ray', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def changed(prompt: language_pb2.Prompt, change: str) -> language_pb2.Prompt:
    """A prompt of one image with one thing wrong."""
    image = prompt.media[0]
    match change:
        case "token over the vocabulary":
            prompt.token_ids[0] = 128
        case "no tokens":
            prompt.ClearField("token_ids")
            prompt.ClearField("media")
        case "span outside":
            image.offset = 500
        case "span not on its placeholders":
            image.offset -= 1
        case "length is not the grid's":
            image.grid.h += 2
        case "placeholder without media":
            prompt.token_ids.append(100)
        case "media twice":
            prompt.media.append(image)
        case "no content key":
            image.content_key = ""
        case "no source":
            image.ClearField("source")
        case "no kind":
            image.kind = common_pb2.MEDIA_KIND_UNSPECIFIED
        case "other kind":
            image.kind = common_pb2.MEDIA_KIND_VIDEO
        case "embedding of another width":
            image.ticket.shape[1] += 1
        case "too long":
            prompt.token_ids.extend([1] * 1_100)
    return prompt


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("token over the vocabulary", "prompt.token_ids"),
        ("no tokens", "prompt.token_ids"),
        ("span outside", "prompt.media[0]"),
        ("span not on its placeholders", "prompt.media[0].offset"),
        ("length is not the grid's", "prompt.media[0].length"),
        ("placeholder without media", "messages"),
        ("media twice", "prompt.media[1]"),
        ("no content key", "prompt.media[0].content_key"),
        ("no source", "prompt.media[0]"),
        ("no kind", "prompt.media[0].kind"),
        ("other kind", "prompt.media[0].second_per_grid_t"),
        ("embedding of another width", "prompt.media[0].ticket.shape"),
        ("too long", "prompt.token_ids"),
    ],
)
async def test_wrong_prompts_are_named(model: Model, cluster: Cluster, change: str, field: str) -> None:
    running = await cluster.actor("prefill_decode")
    router = await cluster.router(running)
    prompt = changed(cluster.prompt(model.case("one image")), change)
    error = await error_of(running.language.Decode(decode_request(cluster, model.case("text"), "bad", prompt=prompt)))
    assert isinstance(error, RequestTooLarge if change == "too long" else InvalidRequest)
    assert error.field == field
    good = decode_request(cluster, model.case("text"), "good", sampling=sampling(3))
    await running.language.Decode(good)
    assert tuple(await router.answer("good")) == model.case("text").expected[:3]


async def test_wrong_sampling_is_named(model: Model, cluster: Cluster) -> None:
    running = await cluster.actor("prefill_decode")
    case = model.case("text")
    for parameters, field in (
        (sampling(temperature=float("nan")), "sampling.temperature"),
        (sampling(stop_token_ids=[128]), "sampling.stop_token_ids"),
    ):
        error = await error_of(running.language.Decode(decode_request(cluster, case, "r", sampling=parameters)))
        assert isinstance(error, InvalidRequest)
        assert error.field == field


async def test_pages_of_another_size_or_model_are_refused(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await cluster.actor("prefill"), await cluster.actor("decode")
    case = model.case("text")
    ticket = cluster.kv_ticket(prefiller, case.prompt.num_tokens, page_size=16)
    error = await error_of(decoder.language.Decode(decode_request(cluster, case, "r", kv_ticket=ticket)))
    assert isinstance(error, FailedPrecondition)
    assert "page_size is 16 there and 8 here" in error.message
    ticket = cluster.kv_ticket(prefiller, case.prompt.num_tokens)
    ticket.model_fingerprint = "other"
    error = await error_of(decoder.language.Decode(decode_request(cluster, case, "r", kv_ticket=ticket)))
    assert isinstance(error, FailedPrecondition)
    assert "model.path" in error.message


@pytest.mark.parametrize(
    ("section", "setting", "most"),
    [
        ({"num_pages": 4}, "stages.prefill_decode.num_pages", 31),
        ({"max_context_tokens": 30}, "stages.prefill_decode.max_context_tokens", 29),
    ],
)
async def test_a_prompt_that_never_fits_names_the_limit(
    model: Model, cluster: Cluster, section: dict[str, int], setting: str, most: int
) -> None:
    running = await cluster.actor("prefill_decode", make_config(model, **section))
    error = await error_of(running.language.Decode(decode_request(cluster, model.case("text"), "r")))
    assert isinstance(error, RequestTooLarge)
    assert f"the prompt has 37 tokens, at most {most}" in error.message
    assert setting in error.message


async def test_overload_is_told(model: Model, cluster: Cluster) -> None:
    """One prompt waits for its picture; there is no room for a second one, until the first has gone."""
    running = await cluster.actor("prefill_decode", make_config(model, max_waiting_tokens=40))
    router = await cluster.router(running)
    waits = running.language.Decode(
        decode_request(
            cluster, model.case("two images"), "waits", prompt=cluster.prompt(model.case("two images"), grant=False)
        ),
        timeout=TIMEOUT_S,
    )
    await asyncio.sleep(0.1)
    error = await error_of(running.language.Decode(decode_request(cluster, model.case("text"), "over")))
    assert isinstance(error, Overloaded)
    assert error.field == "max_waiting_tokens"
    assert error.retry_after_s > 0
    waits.cancel()
    await running.wait_released()
    await running.language.Decode(decode_request(cluster, model.case("text"), "later", sampling=sampling(3)))
    assert len(await router.answer("later")) == 3


async def wait_for_tokens(tokens: dict[str, list[int]], request_id: str) -> None:
    for _ in range(500):
        if tokens.get(request_id):
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"no tokens of {request_id}")


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


async def test_unfetched_pages_push_back(model: Model, cluster: Cluster) -> None:
    """A prefill actor whose pages nobody fetches takes no more prompts, and says so; releasing them helps."""
    prefiller = await cluster.actor("prefill", make_config(model, num_pages=6))
    case = model.case("text")
    tickets = [cluster.kv_ticket(prefiller, case.prompt.num_tokens) for _ in range(4)]

    def prefill(number: int) -> Any:
        request = language_pb2.PrefillRequest(
            request_id=f"r{number}", prompt=cluster.prompt(case), sampling=sampling(), kv_ticket=tickets[number]
        )
        return prefiller.language.Prefill(request, timeout=TIMEOUT_S)

    await prefill(0)
    await prefill(1)
    assert (await prefiller.ask()).language.held_pages == 10
    error = await error_of(prefill(2))
    assert isinstance(error, Overloaded)
    assert "decode actors" in error.message
    prefiller.actor._parts.stage.leases.release([tickets[0].ticket_id, tickets[1].ticket_id])  # type: ignore[union-attr]
    assert (await prefill(3)).first_token_id == case.expected[0]


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


async def test_actor_info_of_another_actor_is_not_found(cluster: Cluster) -> None:
    running: RunningActor = await cluster.actor("decode")
    error = await error_of(running.admin.GetActorInfo(admin_pb2.GetActorInfoRequest(actor_id="decode-0")))
    assert isinstance(error, NotFound)
