"""AdminService of the other processes: the first one answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from triptych.rpc.status import rpc_errors
from triptych.v1 import admin_pb2, admin_pb2_grpc

Request = TypeVar("Request")
Response = TypeVar("Response")


class ForwardedAdmin(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """Hands calls on with the rest of their deadline. Whether a caller may call was checked at this process's door."""

    def __init__(self, first: grpc.aio.Channel) -> None:
        self._stub = admin_pb2_grpc.AdminServiceStub(first)

    async def GetTopology(
        self, request: admin_pb2.GetTopologyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetTopologyResponse:
        return await _forward(self._stub.GetTopology, request, context)

    async def GetActorInfo(
        self, request: admin_pb2.GetActorInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetActorInfoResponse:
        return await _forward(self._stub.GetActorInfo, request, context)

    async def Scale(
        self, request: admin_pb2.ScaleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ScaleResponse:
        return await _forward(self._stub.Scale, request, context)

    async def MoveActor(
        self, request: admin_pb2.MoveActorRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.MoveActorResponse:
        return await _forward(self._stub.MoveActor, request, context)


async def _forward(
    method: Callable[..., Awaitable[Response]], request: Request, context: grpc.aio.ServicerContext[Any, Any]
) -> Response:
    with rpc_errors("the first router process"):
        return await method(request, timeout=context.time_remaining())
