"""What every server of the project answers beside its services: health, reflection, an address in use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from triptych.errors import ConfigurationError, DeadlineExceeded
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.rpc.server import RpcServer
from triptych.v1 import encoder_pb2_grpc, tensor_pb2_grpc

SERVICES = ("triptych.v1.TensorService", "triptych.v1.EncoderService")
MIB = 1024 * 1024


@pytest.fixture
async def served() -> AsyncIterator[tuple[RpcServer, grpc.aio.Channel, int]]:
    server = RpcServer("127.0.0.1", 0, MIB)
    server.add(
        tensor_pb2_grpc.add_TensorServiceServicer_to_server, tensor_pb2_grpc.TensorServiceServicer(), SERVICES[0]
    )
    server.add(
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server, encoder_pb2_grpc.EncoderServiceServicer(), SERVICES[1]
    )
    port = await server.start()
    channels = ChannelPool(MIB)
    yield server, channels.get(f"127.0.0.1:{port}"), port
    await channels.close()
    await server.stop(0)


async def test_health_follows_set_serving_and_stop(served: tuple[RpcServer, grpc.aio.Channel, int]) -> None:
    server, channel, _ = served
    health = health_pb2_grpc.HealthStub(channel)

    async def states() -> set[int]:
        answers = [await health.Check(health_pb2.HealthCheckRequest(service=name)) for name in ("", *SERVICES)]
        return {answer.status for answer in answers}

    assert await states() == {health_pb2.HealthCheckResponse.NOT_SERVING}
    await server.set_serving(True)
    assert await states() == {health_pb2.HealthCheckResponse.SERVING}
    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(server.stop(1))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    await stopping
    await server.stop(1)


async def test_unknown_health_service_is_not_found(served: tuple[RpcServer, grpc.aio.Channel, int]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(served[1]).Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_all_services(served: tuple[RpcServer, grpc.aio.Channel, int]) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served[1])
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health"} <= names
    call.cancel()


async def test_a_port_in_use_is_a_configuration_error(served: tuple[RpcServer, grpc.aio.Channel, int]) -> None:
    second = RpcServer("127.0.0.1", served[2], MIB)
    with pytest.raises(ConfigurationError, match=str(served[2])):
        await second.start()
    await second.stop(0)


def test_deadline_counts_down_and_refuses_the_next_hop_when_over() -> None:
    now_s = [100.0]
    deadline = Deadline.after(2.0, lambda: now_s[0])
    now_s[0] = 101.5
    assert deadline.remaining_s() == deadline.next_hop_s("encode") == 0.5
    now_s[0] = 103.0
    assert deadline.remaining_s() == 0
    with pytest.raises(DeadlineExceeded, match="encode"):
        deadline.next_hop_s("encode")
