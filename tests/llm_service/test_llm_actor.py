"""LLM actors over gRPC: the tokens of transformers through prefill, transfer and decode, with and without a tower."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from engine_helpers import CASES, Model
from service_helpers import (
    TIMEOUT_S,
    Cluster,
    FakeEmbedder,
    decode_request,
    error_of,
    make_config,
    sampling,
)

from llm_service.actor import LlmActor
from triptych.errors import (
    ConfigurationError,
    FailedPrecondition,
)
from triptych.switch import SWITCH
from triptych.v1 import common_pb2, language_pb2


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
    await cluster.wait_released()
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
