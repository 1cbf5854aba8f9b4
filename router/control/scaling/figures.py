"""Asking an actor for its counters."""

from __future__ import annotations

import logging

import grpc

from router.control.membership import Member
from triptych.errors import Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2, admin_pb2_grpc

logger = logging.getLogger(__name__)


class ActorFigures:
    """Over gRPC; an actor that has not answered within timeout_s is left out this time."""

    def __init__(self, channels: ChannelPool, timeout_s: float) -> None:
        self._channels = channels
        self._timeout_s = timeout_s

    async def ask(self, member: Member) -> admin_pb2.ActorInfo | None:
        try:
            stub = admin_pb2_grpc.AdminServiceStub(self._channels.get(member.endpoint))
            response = await stub.GetActorInfo(admin_pb2.GetActorInfoRequest(), timeout=self._timeout_s)
        except (grpc.aio.AioRpcError, Unavailable) as error:
            logger.debug("%s did not say its figures: %s", member.actor_id, error)
            return None
        info: admin_pb2.ActorInfo = response.info
        return info
