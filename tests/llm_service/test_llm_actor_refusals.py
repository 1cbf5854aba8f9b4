"""What LLM actors refuse over gRPC: in plain words, by field, and with the next request answered right."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_helpers import Model
from service_helpers import (
    TIMEOUT_S,
    Cluster,
    RunningActor,
    decode_request,
    error_of,
    make_config,
    sampling,
)

from triptych.errors import (
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestTooLarge,
)
from triptych.v1 import admin_pb2, common_pb2, language_pb2


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


async def test_actor_info_of_another_actor_is_not_found(cluster: Cluster) -> None:
    running: RunningActor = await cluster.actor("decode")
    error = await error_of(running.admin.GetActorInfo(admin_pb2.GetActorInfoRequest(actor_id="decode-0")))
    assert isinstance(error, NotFound)
