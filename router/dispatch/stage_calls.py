"""The calls that a walk makes to actors, with one treatment of failure for all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import grpc

from router.control.membership import Member, Membership
from router.dispatch.remote_failure import is_actor_lost
from router.dispatch.stage_stubs import StubPool
from triptych.errors import TriptychError
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.rpc.status import rpc_errors
from triptych.telemetry.request_scope import trace_metadata
from triptych.v1 import (
    encoder_pb2,
    language_pb2,
    tensor_pb2,
)

logger = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 2.0  # a courtesy: leases run out by themselves

Request = TypeVar("Request")
Response = TypeVar("Response")


class StageCalls:
    """Calls raise TriptychErrors and end with their task; an actor whose connection fails is reported lost."""

    def __init__(self, channels: ChannelPool, membership: Membership) -> None:
        self._stubs = StubPool(channels)
        self._membership = membership
        self._background: set[asyncio.Task[None]] = set()

    async def encode(
        self, member: Member, request: encoder_pb2.EncodeRequest, deadline: Deadline
    ) -> encoder_pb2.EncodeResponse:
        """Returns when every item is encoded; the embeddings stay with the encoder."""
        stub = self._stubs.get(member.endpoint).encoder
        return await self._call(member, stub.Encode, request, deadline)

    async def prefill(
        self, member: Member, request: language_pb2.PrefillRequest, deadline: Deadline
    ) -> language_pb2.PrefillResponse:
        """Returns with the first token; the KV pages stay with the prefill actor."""
        stub = self._stubs.get(member.endpoint).language
        return await self._call(member, stub.Prefill, request, deadline)

    async def decode(
        self, member: Member, request: language_pb2.DecodeRequest, deadline: Deadline
    ) -> language_pb2.DecodeResponse:
        """Returns after the last token was sent on the step stream."""
        stub = self._stubs.get(member.endpoint).language
        return await self._call(member, stub.Decode, request, deadline)

    def release(self, member: Member, ticket_ids: Sequence[str]) -> None:
        """Tells a producer in the background that nobody will fetch these tensors any more."""
        self._in_background(self._release(member, ticket_ids), f"release at {member.actor_id}")

    def abort_choice(self, member: Member, request_id: str, choice_index: int) -> None:
        """Tells an LLM actor in the background that one answer of a request is long enough."""
        self._in_background(self._abort_choice(member, request_id, choice_index), f"abort at {member.actor_id}")

    async def close(self) -> None:
        """Waits for what is under way in the background."""
        await asyncio.gather(*self._background, return_exceptions=True)

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _abort_choice(self, member: Member, request_id: str, choice_index: int) -> None:
        stub = self._stubs.get(member.endpoint).language
        choice = language_pb2.ChoiceOfRequest(request_id=request_id, choice_index=choice_index)
        request = language_pb2.AbortRequest(choices=[choice])
        try:
            await self._call(member, stub.Abort, request, Deadline.after(RELEASE_TIMEOUT_S))
        except TriptychError as error:
            logger.debug("answer %d of %s was not stopped: %s", choice_index, request_id, error.message)

    async def _release(self, member: Member, ticket_ids: Sequence[str]) -> None:
        stub = self._stubs.get(member.endpoint).tensor
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
                timeout_s = deadline.next_hop_s(f"call {member.stage}")
                return await method(request, timeout=timeout_s, metadata=trace_metadata() or None)
            except grpc.aio.AioRpcError as failure:
                if is_actor_lost(failure) and self._membership.report_lost(member.actor_id):
                    logger.warning("%s actor %s is lost: %s", member.stage, member.actor_id, failure.details())
                raise
