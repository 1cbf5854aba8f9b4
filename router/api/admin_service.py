"""AdminService as the router serves it: the whole system's topology, any actor's own account, and scaling."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc

from router.api.scaler import Scaler
from router.control.membership import Member, Membership, StageName
from triptych.config import DeploymentConfig
from triptych.errors import InvalidRequest, NotFound
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import remaining_s
from triptych.rpc.status import rpc_errors
from triptych.v1 import admin_pb2, admin_pb2_grpc

MAX_ACTORS_PER_STAGE = 1024  # as in the configuration: stages.*.replicas


class AdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """Asks the running actors over gRPC; leaves every change to the `Scaler`."""

    def __init__(
        self,
        config: DeploymentConfig,
        model_name: str,
        membership: Membership,
        channels: ChannelPool,
        scaler: Scaler,
        counters: Callable[[], admin_pb2.RouterCounters] = admin_pb2.RouterCounters,
    ) -> None:
        self._config = config
        self._model_name = model_name
        self._membership = membership
        self._channels = channels
        self._scaler = scaler
        self._counters = counters

    async def GetTopology(
        self, request: admin_pb2.GetTopologyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetTopologyResponse:
        """Every stage with its wanted number of actors, and the actors it has; what the router counts."""
        return admin_pb2.GetTopologyResponse(
            mode=str(self._config.mode),
            model=self._model_name,
            stages=self._scaler.topology(),
            router=self._counters(),
        )

    async def GetActorInfo(
        self, request: admin_pb2.GetActorInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetActorInfoResponse:
        """What the actor says about itself right now. Raises NotFound for an id that no live actor has."""
        member = self._member(request.actor_id)
        stub = admin_pb2_grpc.AdminServiceStub(self._channels.get(member.endpoint))
        timeout_s = remaining_s(context, self._config.control.health_timeout_s)
        with rpc_errors(f"{member.stage} actor {member.actor_id} at {member.endpoint}"):
            response: admin_pb2.GetActorInfoResponse = await stub.GetActorInfo(request, timeout=timeout_s)
        return response

    async def Scale(
        self, request: admin_pb2.ScaleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ScaleResponse:
        """Sets a stage's number of actors. Raises InvalidRequest for an unknown stage or a number out of range."""
        try:
            stage = StageName.from_proto(request.stage)
        except ValueError as error:
            raise InvalidRequest(str(error), field="stage") from None
        if request.automatic:
            self._scaler.unpin(stage)
            status = next(status for status in self._scaler.topology() if status.stage == request.stage)
            return admin_pb2.ScaleResponse(status=status)
        if request.num_actors > MAX_ACTORS_PER_STAGE:
            raise InvalidRequest(
                f"num_actors is {request.num_actors}, expected at most {MAX_ACTORS_PER_STAGE}", field="num_actors"
            )
        timeout_s = remaining_s(context, self._config.control.start_timeout_s)
        status = await self._scaler.scale(stage, request.num_actors, wait=request.wait, timeout_s=timeout_s)
        return admin_pb2.ScaleResponse(status=status)

    async def MoveActor(
        self, request: admin_pb2.MoveActorRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.MoveActorResponse:
        """Has an actor take work of another stage. Raises InvalidRequest for stages that there are not."""
        from_stage, to_stage = _stage(request, "from_stage"), _stage(request, "to_stage")
        begun_s = time.monotonic()
        actor_id = await self._scaler.move(from_stage, to_stage, request.actor_id, is_automatic=request.is_automatic)
        statuses = {status.stage: status for status in self._scaler.topology()}
        return admin_pb2.MoveActorResponse(
            actor_id=actor_id,
            stages=[statuses[stage.to_proto()] for stage in (from_stage, to_stage) if stage.to_proto() in statuses],
            seconds=time.monotonic() - begun_s,
        )

    def _member(self, actor_id: str) -> Member:
        members = self._membership.all_members()
        for member in members:
            if member.actor_id == actor_id:
                return member
        known = ", ".join(member.actor_id for member in members) or "none"
        raise NotFound(f"no actor {actor_id!r}; there are: {known}", field="actor_id")


def _stage(request: Any, field: str) -> StageName:
    try:
        return StageName.from_proto(getattr(request, field))
    except ValueError as error:
        raise InvalidRequest(f"{field}: {error}", field=field) from None
