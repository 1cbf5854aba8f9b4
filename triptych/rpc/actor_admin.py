"""What an actor says about itself over AdminService."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from triptych.errors import NotFound
from triptych.v1 import admin_pb2, admin_pb2_grpc


class ActorAdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """GetActorInfo about this actor. The topology and scaling are the router's: gRPC answers UNIMPLEMENTED here."""

    def __init__(self, describe: Callable[[], admin_pb2.ActorInfo]) -> None:
        self._describe = describe

    async def GetActorInfo(
        self, request: admin_pb2.GetActorInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetActorInfoResponse:
        info = self._describe()
        if request.actor_id not in ("", info.actor_id):
            raise NotFound(f"actor_id is {request.actor_id}, but this actor is {info.actor_id}", field="actor_id")
        return admin_pb2.GetActorInfoResponse(info=info)
