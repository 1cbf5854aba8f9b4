"""What hostile or unlucky HTTP clients may cost: bytes, time, memory."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx2
import pytest
from http_system import QUESTION, RIGHT_ANSWER, HttpSystem, circle, data_url, http_system, image, user
from memory_bound import MIB, bounded_memory

from router.api.client_ports import SPARE_CALLS
from triptych.client import AsyncClient
from triptych.errors import Overloaded
from triptych.v1 import inference_pb2, inference_pb2_grpc

PATH = "/v1/chat/completions"
LONG: dict[str, Any] = {"messages": user("Count."), "max_tokens": 20_000, "ignore_eos": True, "stream": True}


async def post(running: HttpSystem, content: Any, **headers: str) -> httpx2.Response:
    async with running.http() as client:
        return await client.post(PATH, content=content, headers=headers)


async def pieces(num_pieces: int) -> AsyncIterator[bytes]:
    for _ in range(num_pieces):
        yield b" " * 10_000


@pytest.mark.asyncio(loop_scope="module")
async def test_broken_json_and_other_bodies(running: HttpSystem) -> None:
    bodies = [b"", b"{", b"[]", b"1", b"null", b"\xff\xfe", b'{"messages":' + b"[" * 100_000, b'"' + b"x" * 50_000]
    bodies += [b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b'{"messages": NaN}', b"{}"]
    bodies += [json.dumps({"messages": user("x"), "temperature": number}).encode() for number in (1e400, float("nan"))]
    bodies += [json.dumps({"messages": user("x"), "seed": 2**70}).encode(), json.dumps({"messages": [1] * 9}).encode()]
    for body in bodies:
        answer = await post(running, body)
        assert answer.status_code == 400, (body[:60], answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(answer.content) < 2_000
    assert (await post(running, json.dumps({"messages": user("Hello!"), "max_tokens": 1}))).status_code == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_json_that_weighs_little_and_means_much(running: HttpSystem) -> None:
    answer = await post(running, b'{"messages": [' + b"1," * 2_000_000 + b"1]}")
    assert answer.status_code == 413 and "values" in answer.json()["error"]["message"]


async def test_bodies_are_bounded_with_and_without_a_length() -> None:
    async with http_system(limits={"max_message_bytes": 100_000}) as running:
        for content in (b" " * 100_001, pieces(11)):
            answer = await post(running, content)
            assert answer.status_code == 413 and "limits.max_message_bytes" in answer.json()["error"]["message"]
        assert (await post(running, pieces(10))).status_code == 400, "that much is read, and is no JSON"
        assert running.ports.answering.budget.num_held == 0


async def test_pictures_are_bounded_before_they_are_decoded() -> None:
    limits = {"max_image_bytes": 1_000, "max_video_bytes": 2_000, "max_video_frames": 4, "max_media_items": 3}
    async with http_system(limits=limits) as running:
        frames = ",".join(["AAAA"] * 5)
        for parts, says in (
            ([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "?" * 1_400}}], "max_image_bytes"),
            ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "?" * 2_800}}], "max_video_bytes"),
            ([{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}], "max_video_frames"),
            ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}] * 4, "max_media_items"),
        ):
            answer = await post(running, json.dumps({"messages": user(*parts)}))
            assert answer.status_code == 413, answer.text
            assert f"limits.{says}" in answer.json()["error"]["message"]


async def test_bytes_of_all_pending_requests_are_bounded() -> None:
    """Requests that hang in the router with their pictures, over either port."""
    picture = circle() + b"\0" * 100_000  # What stands behind a PNG's end is nobody's business but takes room.
    limits = {"max_message_bytes": 200_000, "max_pending_bytes": 320_000}
    long = {**LONG, "messages": user(image(picture), QUESTION), "max_tokens": 1_000}
    async with http_system(limits=limits) as running, running.http() as client:
        async with client.stream("POST", PATH, json=long) as first, client.stream("POST", PATH, json=long) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            third = await client.post(PATH, json=long)
            assert third.status_code == 429 and third.json()["error"]["param"] == "limits.max_pending_bytes"
            assert int(third.headers["retry-after"]) >= 1
            async with AsyncClient(running.rpc, timeout_s=10) as grpc_client:
                with pytest.raises(Overloaded) as over:
                    await grpc_client.ask(QUESTION, images=[picture, picture[:-60_000]])
                assert over.value.field == "limits.max_pending_bytes"
            small = await client.post(PATH, json={"messages": user("Hello!"), "max_tokens": 1})
            assert small.status_code == 200
        await running.system.wait_until_nothing_is_held()
        assert running.ports.answering.budget.num_held == 0


async def test_calls_are_bounded_before_their_requests_are_read() -> None:
    """Open calls that have sent nothing yet take the places; gRPC itself refuses the next."""
    async with (
        http_system(limits={"max_pending_requests": 1}) as running,
        grpc.aio.insecure_channel(running.rpc) as channel,
    ):
        open_call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        idle = [open_call() for _ in range(SPARE_CALLS + 1)]
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        codes = set()
        for _ in range(100):
            try:
                await stub.Generate(inference_pb2.GenerateRequest(), timeout=5).read()
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
            if grpc.StatusCode.RESOURCE_EXHAUSTED in codes:
                break
            await asyncio.sleep(0.01)
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        for call in idle:
            call.cancel()


async def test_a_client_that_stops_reading_holds_up_nobody_and_loses_its_place() -> None:
    """It holds up nobody, and its request ends with its deadline although tokens still wait for it."""
    async with http_system(defaults={"timeout_s": 1.5}) as running:
        host, port = running.url.removeprefix("http://").split(":")
        body = json.dumps(LONG | {"logprobs": True, "top_logprobs": 20, "n": 4}).encode()
        _reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        await running.wait_until_decoding()
        async with running.http() as client:
            other = await client.post(PATH, json={"messages": user(image(circle()), QUESTION), "max_tokens": 8})
        assert other.json()["choices"][0]["message"]["content"] == RIGHT_ANSWER
        await running.system.wait_until_nothing_is_held(timeout_s=20.0)
        writer.close()


@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 20}], ids=["text", "logprobs"])
async def test_a_client_that_reads_late_costs_little_meanwhile_and_gets_all(more: dict[str, Any]) -> None:
    """Others are answered while its tokens wait, and while all of them are written."""
    body = json.dumps(LONG | more | {"max_tokens": 600, "stream_options": {"include_usage": True}}).encode()
    async with http_system() as running, running.http() as client:
        host, port = running.url.removeprefix("http://").split(":")
        question = {"messages": user(image(circle()), QUESTION), "max_tokens": 8}
        assert (await client.post(PATH, json=question)).status_code == 200
        with bounded_memory(64 * MIB):
            small = socket.socket()
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            small.connect((host, int(port)))
            reader, writer = await asyncio.open_connection(sock=small, limit=1_024)
            writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            await running.wait_until_decoding()
            other = await client.post(PATH, json=question)
            while (await running.system.held())["running"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        reading = asyncio.create_task(_read_until_done(reader))
        others = [(await client.post(PATH, json=question)).json() for _ in range(3)]
        answer = await asyncio.wait_for(reading, 30)
        for one in (other.json(), *others):
            assert one["choices"][0]["message"]["content"] == RIGHT_ANSWER
        events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith(b"data: {")]
        assert events[-1]["usage"]["completion_tokens"] == 600
        logprobs = [choice["logprobs"] for event in events for choice in event["choices"] if choice["logprobs"]]
        assert sum(len(piece["content"]) for piece in logprobs) == (600 if more else 0)
        writer.close()
        await running.system.wait_until_nothing_is_held()


async def _read_until_done(reader: asyncio.StreamReader) -> bytes:
    """The body of a chunked response without its chunks' lengths, where no event is cut in two by them."""
    answer = b""
    while b"data: [DONE]" not in answer[-100:]:
        piece = await reader.read(2**20)
        assert piece, "the connection ended before the answer"
        answer += piece
    return answer


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with http_system(defaults={"timeout_s": 0.3}) as running:
        host, port = running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode() + b'{"mess')
        answer = await asyncio.wait_for(reader.read(4_096), 10)
        assert answer.startswith(b"HTTP/1.1 504 ") and b"defaults.timeout_s" in answer
        writer.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_what_metrics_count(running: HttpSystem) -> None:
    before = {
        name: await running.metric(f"triptych:{name}")
        for name in ("prompt_tokens_total", "generation_tokens_total", "time_to_first_token_seconds_count")
    }
    async with running.http() as client:
        body = {"messages": user({"type": "image_url", "image_url": {"url": data_url(circle())}}, QUESTION)}
        answer = (await client.post(PATH, json=body | {"max_tokens": 4})).json()
        await client.post(PATH, json={"messages": []})
    usage = answer["usage"]
    assert (
        await running.metric("triptych:prompt_tokens_total") == before["prompt_tokens_total"] + usage["prompt_tokens"]
    )
    generated = await running.metric("triptych:generation_tokens_total")
    assert generated == before["generation_tokens_total"] + usage["completion_tokens"] == generated
    first = await running.metric("triptych:time_to_first_token_seconds_count")
    assert first == before["time_to_first_token_seconds_count"] + 1
    assert await running.metric('triptych:requests_total{api="http",model_name="tiny",outcome="invalid_request"}') >= 1
    assert await running.metric("triptych:num_requests_running") == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_ready_tells_which_stage_is_missing(running: HttpSystem) -> None:
    members = running.system.membership.all_members()
    async with running.http() as client:
        assert (await client.get("/ready")).status_code == 200
        running.system.membership.set([member for member in members if member.stage != "decode"])
        try:
            answer = await client.get("/ready")
            assert answer.status_code == 503 and "decode" in answer.json()["error"]["message"]
            assert (await client.get("/health")).status_code == 200
        finally:
            running.system.membership.set(members)
