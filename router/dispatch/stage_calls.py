"""The calls that a walk makes to actors, with one treatment of failure for all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from router.control.membership import Member, Membership
from router.dispatch.remote_failure import is_actor_lost
from triptych.errors import TriptychError
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.rpc.status import rpc_errors
from triptych.v1 import (
    encoder_pb2,
    encoder_pb2_grpc,
    language_pb2,
    language_pb2_grpc,
    tensor_pb2,
    tensor_pb2_grpc,
)

logger = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 2.0  # a courtesy: leases run out by themselves

Request = TypeVar("Request")
Response = TypeVar("Response")


class StageCalls:
    """Calls raise TriptychErrors and end with their task; an actor whose connection fails is reported lost."""

    def __init__(self, channels: ChannelPool, membership: Membership) -> None:
        self._channels = channels
        self._membership = membership
        self._releases: set[asyncio.Task[None]] = set()

    async def encode(
        self, member: Member, request: encoder_pb2.EncodeRequest, deadline: Deadline
    ) -> encoder_pb2.EncodeResponse:
        """Returns when every item is encoded; the embeddings stay with the encoder."""
        stub = encoder_pb2_grpc.EncoderServiceStub(self._channels.get(member.endpoint))
        return await self._call(member, stub.Encode, request, deadline)

    async def prefill(
        self, member: Member, request: language_pb2.PrefillRequest, deadline: Deadline
    ) -> language_pb2.PrefillResponse:
        """Returns with the first token; the KV pages stay with the prefill actor."""
        stub = language_pb2_grpc.LanguageServiceStub(self._channels.get(member.endpoint))
        return await self._call(member, stub.Prefill, request, deadline)

    async def decode(
        self, member: Member, request: language_pb2.DecodeRequest, deadline: Deadline
    ) -> language_pb2.DecodeResponse:
        """Returns after the last token was sent on the step stream."""
        stub = language_pb2_grpc.LanguageServiceStub(self._channels.get(member.endpoint))
        return await self._call(member, stub.Decode, request, deadline)

    def release(self, member: Member, ticket_ids: Sequence[str]) -> None:
        """Tells a producer in the background that nobody will fetch these tensors any more."""
        task = asyncio.create_task(self._release(member, ticket_ids), name=f"release at {member.actor_id}")
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def close(self) -> None:
        """Waits for releases that are under way."""
        await asyncio.gather(*self._releases, return_exceptions=True)

    async def _release(self, member: Member, ticket_ids: Sequence[str]) -> None:
        stub = tensor_pb2_grpc.TensorServiceStub(self._channels.get(member.endpoint))
        request = tensor_pb2.ReleaseRequest(ticket_ids=ticket_ids)
        try:
            await self._call(member, stub.Release, request, Deadline.after(RELEASE_TIMEOUT_S))
        except TriptychError as error:
            logger.debug("%d tickets at %s were not released: %s", len(ticket_ids), member.actor_id, error.message)

    async def _call(
        self, member: Member, method: Callable[..., Awaitable[Response]], request: Request, deadline: Deadline
    ) -> Response:
        with rpc_errors(f"{member.stage} actor {member.actor_id} at {member.endpoint}"):
            try:
                return await method(request, timeout=deadline.next_hop_s(f"call {member.stage}"))
            except grpc.aio.AioRpcError as failure:
                if is_actor_lost(failure) and self._membership.report_lost(member.actor_id):
                    logger.warning("%s actor %s is lost: %s", member.stage, member.actor_id, failure.details())
                raise
