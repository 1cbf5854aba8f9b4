"""What an actor says about itself over AdminService."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from triptych.errors import FailedPrecondition, InvalidRequest, NotFound
from triptych.v1 import admin_pb2, admin_pb2_grpc

SetRole = Callable[[admin_pb2.SetRoleRequest], int]
"""Answers how many requests run on though they are not of the new role."""


class ActorAdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """GetActorInfo about this actor, and SetRole where it has several roles. The topology and scaling are the router's:
    gRPC answers UNIMPLEMENTED here. Who may call is settled by `security.stages`, as for all of an actor's services."""

    def __init__(self, describe: Callable[[], admin_pb2.ActorInfo], set_role: SetRole | None = None) -> None:
        self._describe = describe
        self._set_role = set_role

    async def GetActorInfo(
        self, request: admin_pb2.GetActorInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetActorInfoResponse:
        info = self._describe()
        if request.actor_id not in ("", info.actor_id):
            raise NotFound(f"actor_id is {request.actor_id}, but this actor is {info.actor_id}", field="actor_id")
        return admin_pb2.GetActorInfoResponse(info=info)

    async def SetRole(
        self, request: admin_pb2.SetRoleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.SetRoleResponse:
        if self._set_role is None:
            raise FailedPrecondition("this actor has one role and keeps it", field="stage")
        if not 0 <= request.drain_s < float("inf"):
            raise InvalidRequest(f"drain_s is {request.drain_s}, expected seconds, 0 or more", field="drain_s")
        num_remaining = self._set_role(request)
        return admin_pb2.SetRoleResponse(info=self._describe(), remaining_requests=num_remaining)
