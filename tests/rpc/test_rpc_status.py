"""Errors keep their class, message and field over a real connection; broken connections become Unavailable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from triptych.errors import (
    STATUS_CODES,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    RequestTooLarge,
    TriptychError,
    Unavailable,
    grpc_status,
)
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.rpc.status import from_rpc_error, rpc_errors
from triptych.v1 import tensor_pb2, tensor_pb2_grpc

SERVICE = "triptych.v1.TensorService"
MIB = 1024 * 1024


class Scripted(tensor_pb2_grpc.TensorServiceServicer):
    """A real servicer whose handlers do what the test says: `action` runs in each of them."""

    def __init__(self, action: Any, server: RpcServer) -> None:
        self.action = action
        self.server = server
        self.response_bytes = MIB
        self.finally_ran = asyncio.Event()

    async def Release(self, request: tensor_pb2.ReleaseRequest, context: Any) -> tensor_pb2.ReleaseResponse:
        try:
            await self.action()
        finally:
            self.finally_ran.set()
        if self.response_bytes <= MIB:
            return tensor_pb2.ReleaseResponse()
        padding = tensor_pb2.TensorChunk(data=b"x" * self.response_bytes)
        return tensor_pb2.ReleaseResponse.FromString(padding.SerializeToString())  # Carried as an unknown field.

    async def Fetch(self, request: tensor_pb2.FetchRequest, context: Any) -> AsyncIterator[tensor_pb2.FetchResponse]:
        try:
            yield tensor_pb2.FetchResponse(header=tensor_pb2.TensorHeader(num_bytes=1))
            await self.action()
            while True:
                yield tensor_pb2.FetchResponse(chunk=tensor_pb2.TensorChunk(data=b"x" * self.response_bytes))
        finally:
            self.finally_ran.set()


@asynccontextmanager
async def serving(action: Any) -> AsyncIterator[tuple[Scripted, Any, str]]:
    server = RpcServer("127.0.0.1", 0, 8 * MIB)
    servicer = Scripted(action, server)
    server.add(tensor_pb2_grpc.add_TensorServiceServicer_to_server, servicer, SERVICE)
    endpoint = f"127.0.0.1:{await server.start()}"
    channels = ChannelPool(8 * MIB)
    try:
        yield servicer, tensor_pb2_grpc.TensorServiceStub(channels.get(endpoint)), endpoint
    finally:
        await channels.close()
        await server.stop(0)


def raising(error: BaseException) -> Any:
    async def action() -> None:
        raise error

    return action


async def call_release(stub: Any, timeout: float = 5) -> None:
    await stub.Release(tensor_pb2.ReleaseRequest(), timeout=timeout)


async def call_fetch(stub: Any, timeout: float = 5) -> None:
    async for _ in stub.Fetch(tensor_pb2.FetchRequest(), timeout=timeout):
        pass


CALLS = [pytest.param(call_release, id="unary"), pytest.param(call_fetch, id="stream")]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cls", list(STATUS_CODES), ids=lambda cls: cls.__name__)
async def test_every_class_of_the_table_comes_back(cls: type[TriptychError], call: Any) -> None:
    sent = cls("pixels: 5 given, at most 4 (limits.max_image_pixels), größer", field="messages[0].parts[1]")
    async with serving(raising(sent)) as (_, stub, endpoint):
        with pytest.raises(TriptychError) as caught, rpc_errors(endpoint):
            await call(stub)
    assert type(caught.value) is cls
    assert (caught.value.message, caught.value.field) == (sent.message, sent.field)


async def test_status_code_and_retry_advice_are_on_the_wire() -> None:
    async with serving(raising(Overloaded("full", field="stages.encoder", retry_after_s=2.5))) as (_, stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_release(stub)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "2500"
    error = from_rpc_error(caught.value)
    assert isinstance(error, Overloaded) and error.retry_after_s == 2.5


async def test_texts_too_long_for_trailers_are_cut_not_lost() -> None:
    async with serving(raising(RequestTooLarge("ü" * 50_000, field="f" * 5_000))) as (_, stub, _):
        with pytest.raises(RequestTooLarge) as caught, rpc_errors():
            await call_release(stub)
    assert caught.value.message.startswith("üüü") and caught.value.message.endswith("...")
    assert caught.value.field.startswith("fff")


@pytest.mark.parametrize("call", CALLS)
async def test_a_bug_is_logged_and_told_without_its_text(call: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(raising(KeyError("secret path"))) as (_, stub, _):
        with pytest.raises(InternalError) as caught, rpc_errors():
            await call(stub)
    assert "internal error" in caught.value.message and "secret" not in caught.value.message
    assert any(record.exc_info and "secret path" in repr(record.exc_info[1]) for record in caplog.records)


@pytest.mark.parametrize("call", CALLS)
async def test_cancelled_inner_work_is_unavailable_and_a_leaked_timeout_deadline_exceeded(call: Any) -> None:
    async with serving(raising(asyncio.CancelledError())) as (servicer, stub, _):
        with pytest.raises(Unavailable, match="dropped"), rpc_errors():
            await call(stub)
        servicer.action = raising(TimeoutError())
        with pytest.raises(DeadlineExceeded), rpc_errors():
            await call(stub)


@pytest.mark.parametrize("call", CALLS)
async def test_deadline_and_cancel_reach_the_handler_s_finally(call: Any) -> None:
    async with serving(lambda: asyncio.sleep(60)) as (servicer, stub, _):
        with pytest.raises(DeadlineExceeded), rpc_errors():
            await call(stub, timeout=0.1)
        await asyncio.wait_for(servicer.finally_ran.wait(), 2)
        servicer.finally_ran.clear()
        task = asyncio.create_task(call(stub))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(servicer.finally_ran.wait(), 2)


async def test_a_stream_blocked_in_a_write_runs_its_finally_when_the_client_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(lambda: asyncio.sleep(0)) as (servicer, stub, _):
        call = stub.Fetch(tensor_pb2.FetchRequest(), timeout=30)
        await call.read()
        await asyncio.sleep(0.1)  # The handler is now held up by flow control, outside of its own code.
        assert not servicer.finally_ran.is_set()
        call.cancel()
        await asyncio.wait_for(servicer.finally_ran.wait(), 2)
        await asyncio.sleep(0.05)
    assert not caplog.records, "a client that goes is no bug"


@pytest.mark.parametrize("call", CALLS)
async def test_nobody_there_and_a_server_that_stops_are_unavailable(call: Any) -> None:
    async with serving(lambda: asyncio.sleep(60)) as (servicer, stub, endpoint):
        task = asyncio.create_task(call(stub))
        await asyncio.sleep(0.05)
        await servicer.server.stop(0.05)
        with pytest.raises(Unavailable), rpc_errors():
            await task
        assert servicer.finally_ran.is_set()
    channels = ChannelPool(MIB)
    start_s = time.monotonic()
    with pytest.raises(Unavailable, match=endpoint), rpc_errors(endpoint):
        await call(tensor_pb2_grpc.TensorServiceStub(channels.get(endpoint)))
    assert time.monotonic() - start_s < 2
    await channels.close()


async def test_a_channel_closed_under_a_call_is_unavailable_not_cancelled() -> None:
    async with serving(lambda: asyncio.sleep(60)) as (_, _, endpoint):
        channels = ChannelPool(MIB)
        stub = tensor_pb2_grpc.TensorServiceStub(channels.get(endpoint))

        async def call() -> None:
            with rpc_errors(endpoint):
                await call_release(stub)

        task = asyncio.create_task(call())
        await asyncio.sleep(0.05)
        await channels.drop(endpoint)
        with pytest.raises(Unavailable):
            await task
        await channels.close()
        with pytest.raises(Unavailable, match="shutting down"):
            channels.get(endpoint)


@pytest.mark.parametrize("client_limit", [MIB, 64 * MIB], ids=["client", "server"])
async def test_a_message_over_the_limit_names_the_limit(client_limit: int) -> None:
    async with serving(lambda: asyncio.sleep(0)) as (_, stub, endpoint):
        channels = ChannelPool(client_limit)
        big = tensor_pb2.ReleaseRequest(ticket_ids=["x" * (9 * MIB)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tensor_pb2_grpc.TensorServiceStub(channels.get(endpoint)).Release(big, timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = from_rpc_error(caught.value)
        assert isinstance(error, RequestTooLarge) and error.field == "limits.max_message_bytes"
        assert str(min(client_limit, 8 * MIB)) in error.message
        await call_release(stub)
        await channels.close()


@pytest.mark.parametrize("call", CALLS)
async def test_a_response_over_the_limit_names_the_limit(call: Any) -> None:
    async with serving(lambda: asyncio.sleep(0)) as (servicer, stub, _):
        servicer.response_bytes = 9 * MIB
        with pytest.raises(RequestTooLarge, match=str(8 * MIB)), rpc_errors():
            await call(stub)


def test_a_foreign_error_maps_by_status_code() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "no method")
    assert grpc_status(from_rpc_error(error)) is grpc.StatusCode.NOT_FOUND
    garbage = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAUTHENTICATED, grpc.aio.Metadata(), garbage, "who?")
    assert grpc_status(from_rpc_error(error)) is grpc.StatusCode.UNAUTHENTICATED
