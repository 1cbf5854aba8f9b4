"""InferenceService and AdminService over gRPC, asked by both clients; the actors behind them are fakes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from fake_actors import FakeSystem, token_at

from router.api.admin_service import AdminService
from router.api.answering import AnsweringService
from router.api.inference_service import InferenceService
from router.control.membership import StageName
from triptych.client import AsyncClient, Client
from triptych.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestTooLarge,
    Unavailable,
)
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc


class RecordingScaler:
    """Answers what it was asked."""

    def topology(self) -> list[admin_pb2.StageStatus]:
        return [admin_pb2.StageStatus(stage=common_pb2.STAGE_DECODE, wanted_actors=1)]

    async def move(
        self, from_stage: StageName, to_stage: StageName, actor_id: str = "", *, is_automatic: bool = False
    ) -> str:
        self.moved = (from_stage, to_stage, actor_id, is_automatic)
        return "decode-7"

    async def scale(self, stage: StageName, num_actors: int, *, wait: bool, timeout_s: float) -> admin_pb2.StageStatus:
        self.asked = (stage, num_actors, wait)
        return admin_pb2.StageStatus(stage=stage.to_proto(), wanted_actors=num_actors)

    def unpin(self, stage: StageName) -> None:
        self.given_back = stage


@asynccontextmanager
async def serving(system: FakeSystem, scaler: RecordingScaler | None = None) -> AsyncIterator[str]:
    """The address of an API over `system`."""
    channels = ChannelPool(2**24)
    server = RpcServer("127.0.0.1", 0, system.config.limits.max_message_bytes)
    server.add(
        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        InferenceService(AnsweringService.over(system.dispatcher, system.config, "tiny")),
        inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    )
    server.add(
        admin_pb2_grpc.add_AdminServiceServicer_to_server,
        AdminService(system.config, "tiny", system.membership, channels, scaler or RecordingScaler()),
        admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    )
    yield f"127.0.0.1:{await server.start()}"
    await server.stop(0)
    await channels.close()


@asynccontextmanager
async def asking(*stages: str, **overrides: Any) -> AsyncIterator[tuple[FakeSystem, AsyncClient]]:
    async with (
        FakeSystem(*stages, **overrides) as system,
        serving(system) as endpoint,
        AsyncClient(endpoint, timeout_s=10) as client,
    ):
        yield system, client


async def test_an_answer_streams_and_ends_with_its_figures() -> None:
    async with asking("prefill", "decode") as (_, client):
        stream = client.stream("hello", max_tokens=6)
        pieces = [piece async for piece in stream]
        answer = await stream.answer()
        assert "".join(pieces) == answer.text == str(answer)
        first = answer.usage.prompt_tokens
        assert answer.token_ids == tuple(token_at(first + index) for index in range(6))
        assert (answer.finish_reason, answer.model) == ("length", "tiny")
        assert answer.request_id and answer.route.decode_actor == "decode-0"


async def test_the_blocking_client_does_the_same() -> None:
    async with FakeSystem("prefill", "decode") as system, serving(system) as endpoint:

        def use() -> None:
            with Client(endpoint, timeout_s=10) as client:
                answer = client.ask("hello", max_tokens=4)
                assert len(answer.token_ids) == 4
                assert "".join(client.stream("hello", max_tokens=4)) == answer.text
                assert client.chat([{"role": "user", "content": "hello"}], max_tokens=4).text == answer.text
                assert client.topology().mode == "disaggregated"
                with pytest.raises(InvalidRequest) as caught:
                    client.ask("hello", images=[b"no picture"])
                assert caught.value.field == "messages[0].parts[0].image.data"

        await asyncio.to_thread(use)


async def test_errors_come_back_as_their_classes() -> None:
    async with asking("prefill", "decode") as (system, client):
        with pytest.raises(InvalidRequest) as invalid:
            await client.ask("hello", temperature=float("nan"))
        assert invalid.value.field == "sampling.temperature"
        with pytest.raises(InvalidRequest) as empty:
            await client.chat([])
        assert empty.value.field == "messages"
        system.actors["prefill-0"].failure = Overloaded("full", retry_after_s=3_500.0)
        with pytest.raises(Overloaded) as overloaded:
            await client.ask("hello")
        assert overloaded.value.retry_after_s == 3_500.0
        system.actors["prefill-0"].failure = None
        assert (await client.ask("hello", max_tokens=2)).token_ids


async def test_a_message_over_the_limit_is_refused_by_name() -> None:
    async with asking("prefill", "decode", limits={"max_message_bytes": 100_000}) as (_, client):
        with pytest.raises(RequestTooLarge) as caught:
            await client.ask("x" * 200_000)
        assert caught.value.field == "limits.max_message_bytes" and "100000" in caught.value.message
        assert (await client.ask("hello", max_tokens=2)).token_ids


async def test_a_deadline_ends_in_a_status_with_words() -> None:
    async with asking("prefill", "decode") as (system, client):
        system.actors["prefill-0"].gate.clear()
        begun_at = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"defaults\.timeout_s"):
            await client.ask("hello", timeout_s=0.5)
        assert time.monotonic() - begun_at < 0.6


async def test_a_call_without_a_deadline_gets_the_default() -> None:
    async with asking("prefill", "decode", defaults={"timeout_s": 0.4}) as (system, client):
        system.actors["prefill-0"].gate.clear()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.4 s"):
            await client.ask("hello", timeout_s=60)


async def test_a_client_that_does_not_read_loses_its_place() -> None:
    small_window = [("grpc.http2.lookahead_bytes", 1_024), ("grpc.http2.bdp_probe", 0)]
    async with FakeSystem("prefill", "decode", defaults={"timeout_s": 0.5}) as system, serving(system) as endpoint:
        system.actors["decode-0"].step_s = 0.0001
        async with grpc.aio.insecure_channel(endpoint, options=small_window) as channel:
            message = inference_pb2.ChatMessage(role="user", parts=[inference_pb2.ContentPart(text="hello")])
            sampling = common_pb2.SamplingParameters(max_tokens=3_000, ignore_eos=True)
            request = inference_pb2.GenerateRequest(messages=[message], sampling=sampling)
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request)
            await call.initial_metadata()
            assert system.dispatcher.num_pending == 1
            async with asyncio.timeout(3):
                while system.dispatcher.num_pending:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            call.cancel()


async def test_a_stage_without_actors_is_named_within_the_deadline() -> None:
    async with asking("prefill") as (_, client):
        with pytest.raises(Unavailable, match="stage decode"):
            await client.ask("hello", timeout_s=0.5)


async def test_a_clients_cancel_reaches_the_last_hop() -> None:
    async with asking("prefill", "decode") as (system, client):
        decode = system.actors["decode-0"]
        decode.step_s = 0.01
        stream = client.stream("hello", max_tokens=1_000)
        async for _ in stream:
            break
        stream.cancel()
        async with asyncio.timeout(5):
            while decode.num_running or system.dispatcher.num_pending:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert decode.num_cancelled == 1


async def test_admin_calls() -> None:
    scaler = RecordingScaler()
    async with (
        FakeSystem("prefill", "decode") as system,
        serving(system, scaler) as endpoint,
        AsyncClient(endpoint) as client,
    ):
        topology = await client.topology()
        assert (topology.mode, topology.model, len(topology.stages)) == ("disaggregated", "tiny", 1)
        status = await client.scale("prefill_decode", 3, wait=False)
        assert status.wanted_actors == 3 and scaler.asked == (StageName.PREFILL_DECODE, 3, False)
        assert (await client.scale("decode", None)).wanted_actors == 1 and scaler.given_back is StageName.DECODE
        moved = await client.move("prefill", "decode", "prefill-0")
        assert moved.actor_id == "decode-7" and [status.wanted_actors for status in moved.stages] == [1]
        assert scaler.moved == (StageName.PREFILL, StageName.DECODE, "prefill-0", False)
        with pytest.raises(InvalidRequest, match="encoder, prefill, decode, prefill_decode"):
            await client.scale("vision", 1)
        with pytest.raises(InvalidRequest, match="1024"):
            await client.scale("decode", 10_000)
        with pytest.raises(NotFound, match="prefill-0, decode-0"):
            await client.actor_info("gone")


async def test_an_unset_stage_is_refused() -> None:
    async with FakeSystem() as system, serving(system) as endpoint, grpc.aio.insecure_channel(endpoint) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await admin_pb2_grpc.AdminServiceStub(channel).Scale(admin_pb2.ScaleRequest(num_actors=1))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
