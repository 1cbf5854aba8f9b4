"""The openai client, as it comes from PyPI, against a running system: real actors, the small model, a real port."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest
from http_system import QUESTION, RIGHT_ANSWER, HttpSystem, circle, data_url, http_system, image, user
from media_samples import encoded, picture, video

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 16}
LONG: dict[str, Any] = {"model": "tiny", "max_tokens": 2_000, "extra_body": {"ignore_eos": True}}
CHATS = {
    "text": user("Count from 3 to 9."),
    "picture": user(image(circle()), QUESTION),
    "two pictures": user(image(circle()), image(circle((20, 160, 60))), "Describe the second picture."),
    "conversation": [
        {"role": "developer", "content": "Be brief."},
        *user(image(circle()), QUESTION),
        {"role": "assistant", "content": RIGHT_ANSWER},
        {"role": "user", "content": "What color is it?"},
    ],
}


async def ask(running: HttpSystem, messages: Any, **options: Any) -> Any:
    return await running.openai().chat.completions.create(messages=messages, **GREEDY | options)


async def streamed(running: HttpSystem, messages: Any, **options: Any) -> tuple[list[str], list[str], Any]:
    """Texts and finish reasons by choice, and the last chunk."""
    stream = await ask(running, messages, stream=True, stream_options={"include_usage": True}, **options)
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    last = None
    async for last in stream:
        for choice in last.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                assert choice.index not in reasons, "two ends of one answer"
                reasons[choice.index] = choice.finish_reason
    return [texts[index] for index in sorted(texts)], [reasons[index] for index in sorted(reasons)], last


@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS)
async def test_streamed_and_unstreamed_answers_are_equal(running: HttpSystem, messages: list[Any]) -> None:
    whole = await ask(running, messages)
    texts, reasons, last = await streamed(running, messages)
    (choice,) = whole.choices
    assert texts == [choice.message.content] != [""]
    assert reasons == [choice.finish_reason]
    assert last.usage.completion_tokens == whole.usage.completion_tokens > 0
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


async def test_pictures_are_seen_and_the_answer_is_that_of_grpc(running: HttpSystem) -> None:
    over_http = await ask(running, CHATS["picture"])
    over_grpc = await running.system.client.ask(QUESTION, images=[circle()], max_tokens=16, temperature=0)
    assert over_http.choices[0].message.content == over_grpc.text == RIGHT_ANSWER
    assert over_http.usage.completion_tokens == over_grpc.usage.completion_tokens


async def test_videos_as_file_and_as_frames(running: HttpSystem) -> None:
    clip = video(num_frames=8, width=56, height=56)
    for url in (
        data_url(clip, "video/mp4"),
        data_url(encoded(picture(112, 112), "JPEG"), "video/jpeg") + "," + data_url(circle()).partition(",")[2],
    ):
        part = {"type": "video_url", "video_url": {"url": url}}
        whole = await ask(running, user(part, "What moves?"))
        texts, _, last = await streamed(running, user(part, "What moves?"))
        assert texts == [whole.choices[0].message.content]
        assert last.triptych["media_tokens"] > 0


async def test_several_answers(running: HttpSystem) -> None:
    options = {"n": 2, "temperature": 8, "seed": 5, "max_tokens": 12}
    whole = await ask(running, CHATS["text"], **options)
    texts, reasons, last = await streamed(running, CHATS["text"], **options)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert texts[0] != texts[1], "both drew the same tokens"
    assert last.usage.completion_tokens == whole.usage.completion_tokens > 12


async def test_logprobs(running: HttpSystem) -> None:
    whole = await ask(running, CHATS["picture"], logprobs=True, top_logprobs=3)
    entries = whole.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries).startswith(RIGHT_ANSWER)
    assert len(entries) == whole.usage.completion_tokens
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0.0, "greedy takes the likeliest"
        assert bytes(entry.bytes).decode() == entry.token
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0 + 1e-5
    stream = await ask(running, CHATS["picture"], logprobs=True, stream=True)
    told = [entry async for chunk in stream for choice in chunk.choices for entry in choice.logprobs.content]
    assert [entry.token for entry in told] == [entry.token for entry in entries]
    assert [entry.top_logprobs for entry in told] == [[]] * len(entries)


async def test_the_form_of_an_answer(running: HttpSystem) -> None:
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema, "strict": True}}
    whole = await ask(running, CHATS["text"], response_format=form, max_tokens=200)
    assert set(json.loads(whole.choices[0].message.content)) == {"count"}
    assert whole.choices[0].finish_reason == "stop"
    for extra in ({"guided_regex": "(red|blue) [0-9]{2}"}, {"structured_outputs": {"regex": "(red|blue) [0-9]{2}"}}):
        answer = await ask(running, CHATS["text"], extra_body=extra, max_tokens=64)
        color, _, number = answer.choices[0].message.content.partition(" ")
        assert color in ("red", "blue") and number.isdecimal() and len(number) == 2
    with pytest.raises(openai.BadRequestError) as two:
        await ask(running, CHATS["text"], response_format=form, extra_body={"guided_regex": "a"})
    assert two.value.param == "guided_regex"
    broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    with pytest.raises(openai.BadRequestError) as unknown:
        await ask(running, CHATS["text"], response_format=broken)
    assert unknown.value.param == "response_format.json_schema.schema"


async def test_stop_strings_and_limits_of_length(running: HttpSystem) -> None:
    whole = await ask(running, CHATS["picture"], stop=[" circle"])
    texts, reasons, _ = await streamed(running, CHATS["picture"], stop=" circle")
    assert texts == [whole.choices[0].message.content] == ["A red"]
    assert reasons == [whole.choices[0].finish_reason] == ["stop"]
    short = await ask(running, CHATS["picture"], max_completion_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


async def test_seeds_and_vllms_fields_reach_the_sampler(running: HttpSystem) -> None:
    async def draw(seed: int, **extra: Any) -> str:
        answer = await ask(running, CHATS["text"], seed=seed, temperature=8.0, extra_body=extra)
        return str(answer.choices[0].message.content)

    assert await draw(7) == await draw(7)
    assert len({await draw(seed) for seed in (1, 2, -3, 4)}) > 1
    assert await draw(7, top_k=1) == (await ask(running, CHATS["text"])).choices[0].message.content
    forced = await ask(running, CHATS["picture"], extra_body={"ignore_eos": True, "min_tokens": 16})
    assert forced.usage.completion_tokens == 16


async def test_the_request_id_and_where_the_time_went(running: HttpSystem) -> None:
    client = running.openai()
    answer = await client.chat.completions.with_raw_response.create(
        messages=CHATS["picture"], **GREEDY, extra_headers={"X-Request-Id": "my-id.1"}
    )
    whole = answer.parse()
    assert answer.headers["x-request-id"] == "my-id.1" == whole.triptych["request_id"]
    assert whole.id == "chatcmpl-my-id.1"
    assert whole.triptych["route"]["attempts"] == 1 and whole.triptych["route"]["decode_actor"].startswith("decode")
    assert 0 < whole.triptych["timings"]["time_to_first_token_s"] <= whole.triptych["timings"]["total_s"]
    with pytest.raises(openai.BadRequestError) as bad:
        await ask(running, CHATS["text"], extra_headers={"X-Request-Id": "no spaces"})
    assert bad.value.param == "X-Request-Id" and bad.value.request_id


BAD: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], str | None]] = {
    "model": ({"model": "other"}, openai.NotFoundError, "model"),
    "temperature": ({"temperature": -1}, openai.BadRequestError, "temperature"),
    "max_tokens": ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
    "n": ({"n": 0}, openai.BadRequestError, "n"),
    "unknown": ({"extra_body": {"best_off": 2}}, openai.BadRequestError, "best_off"),
    "type": ({"extra_body": {"seed": "seven"}}, openai.BadRequestError, "seed"),
    "tools": ({"extra_body": {"tools": [{"type": "function"}]}}, openai.BadRequestError, "tools"),
    "role": ({"messages": [{"role": "judge", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
    "empty": ({"messages": [{"role": "user", "content": []}]}, openai.BadRequestError, "messages[0].content"),
    "part": ({"messages": user({"type": "audio"})}, openai.BadRequestError, "messages[0].content[0]"),
    "picture": ({"messages": user("x", image(b"no"))}, openai.BadRequestError, "messages[0].content[1].image_url.url"),
    "base64": (
        {"messages": user({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}})},
        openai.BadRequestError,
        "messages[0].content[0].image_url.url",
    ),
    "video": (
        {"messages": user({"type": "video_url", "video_url": {"url": data_url(b"no", "video/mp4")}})},
        openai.BadRequestError,
        "messages[0].content[0].video_url.url",
    ),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 1_000}, openai.BadRequestError, "top_logprobs"),
    "logit_bias": ({"logit_bias": {"word": 1}}, openai.BadRequestError, "logit_bias"),
    "stop": ({"stop": ["x"] * 99}, openai.APIStatusError, "stop"),
    "stream_options": ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "stream_options"),
}


@pytest.mark.parametrize(("options", "error", "param"), BAD.values(), ids=BAD)
async def test_bad_requests_name_their_field(
    running: HttpSystem, options: dict[str, Any], error: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(error) as caught:
        await running.openai().chat.completions.create(**GREEDY | {"messages": CHATS["text"]} | options)
    assert caught.value.param == param
    assert "sampling." not in caught.value.message and ".parts" not in caught.value.message


async def test_a_cancelled_stream_frees_everything(running: HttpSystem) -> None:
    cancelled = await running.metric('triptych:requests_total{api="http",model_name="tiny",outcome="cancelled"}')
    stream = await running.openai().chat.completions.create(messages=CHATS["picture"], stream=True, **LONG)
    async for _ in stream:
        break
    assert (await running.system.held())["router_requests"] == 1
    await stream.close()
    await running.system.wait_until_nothing_is_held()
    assert await running.metric('triptych:requests_total{api="http",model_name="tiny",outcome="cancelled"}') == (
        cancelled + 1
    )


async def test_an_unstreamed_request_ends_with_its_client(running: HttpSystem) -> None:
    asking = asyncio.create_task(running.openai().chat.completions.create(messages=CHATS["picture"], **LONG))
    await running.wait_until_decoding()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await running.system.wait_until_nothing_is_held()


async def test_a_deadline_of_the_request(running: HttpSystem) -> None:
    with pytest.raises(openai.InternalServerError) as late:
        extra = {"ignore_eos": True, "timeout_s": 0.2}
        await ask(running, CHATS["text"], max_tokens=20_000, extra_body=extra)
    assert late.value.status_code == 504 and late.value.code == "deadline_exceeded"
    await running.system.wait_until_nothing_is_held()


async def test_a_stream_that_breaks_says_so(running: HttpSystem) -> None:
    """The status line is long gone: the error is an event, which the client raises."""
    extra = {"ignore_eos": True, "timeout_s": 0.6}
    with pytest.raises(openai.APIError) as late:
        stream = await ask(running, CHATS["text"], max_tokens=20_000, extra_body=extra, stream=True)
        async for _ in stream:
            pass
    assert late.value.code == "deadline_exceeded"
    await running.system.wait_until_nothing_is_held()


async def test_a_full_router_says_when_to_come_again() -> None:
    async with http_system(limits={"max_pending_requests": 1}) as running:
        stream = await running.openai().chat.completions.create(messages=CHATS["text"], stream=True, **LONG)
        async for _ in stream:
            break
        with pytest.raises(openai.RateLimitError) as full:
            await ask(running, CHATS["text"])
        assert full.value.param == "limits.max_pending_requests"
        assert int(full.value.response.headers["retry-after"]) >= 1
        assert float(full.value.response.headers["retry-after-ms"]) > 0
        patient = asyncio.create_task(
            running.openai(max_retries=8).chat.completions.create(messages=CHATS["picture"], **GREEDY)
        )
        await asyncio.sleep(0.05)
        await stream.close()
        assert (await patient).choices[0].message.content == RIGHT_ANSWER, "the client's own retry gets through"
        await running.system.wait_until_nothing_is_held()


async def test_models(running: HttpSystem) -> None:
    client = running.openai()
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "triptych"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other/model")
