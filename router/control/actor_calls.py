"""What the controller asks of an actor over gRPC, whatever its process runs on."""

from __future__ import annotations

import logging

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.control.membership import StageName
from triptych.rpc.channels import ChannelPool
from triptych.rpc.status import rpc_errors
from triptych.v1 import admin_pb2, admin_pb2_grpc

logger = logging.getLogger(__name__)


async def set_role(channels: ChannelPool, endpoint: str, stage: StageName, drain_s: float) -> admin_pb2.ActorInfo:
    """What the actor at `endpoint` says of itself once it takes work of `stage`; raises what keeps it from that."""
    stub = admin_pb2_grpc.AdminServiceStub(channels.get(endpoint))
    request = admin_pb2.SetRoleRequest(stage=stage.to_proto(), drain_s=drain_s)
    with rpc_errors(f"the actor at {endpoint}"):
        response: admin_pb2.SetRoleResponse = await stub.SetRole(request)
    return response.info


async def is_serving(channels: ChannelPool, endpoint: str, timeout_s: float) -> bool:
    """What the health service at `endpoint` says; False when there is no answer."""
    stub = health_pb2_grpc.HealthStub(channels.get(endpoint))
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        logger.debug("health of %s: %s", endpoint, error.details())
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
