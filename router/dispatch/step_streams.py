"""One StreamSteps call to each LLM actor, taken apart by request."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context

import grpc

from router.control.membership import Member, Membership
from router.dispatch.decoded_tokens import DecodedTokens
from router.dispatch.remote_failure import is_actor_lost
from router.dispatch.token_queue import Tokens
from triptych.errors import Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.rpc.status import from_rpc_error
from triptych.v1 import language_pb2, language_pb2_grpc

logger = logging.getLogger(__name__)


class StepStreams:
    """Opens a stream when an actor's first request comes, closes it when the actor has left and nothing runs on it."""

    def __init__(self, channels: ChannelPool, membership: Membership) -> None:
        self.router_id = f"router-{uuid.uuid4().hex[:12]}"
        self._channels = channels
        self._membership = membership
        self._streams: dict[str, StepStream] = {}
        membership.on_change(self._close_streams_of_the_gone)

    @contextmanager
    def subscribe(self, member: Member, request_id: str, tokens: DecodedTokens) -> Iterator[None]:
        """What `member` generates for `request_id` goes to `tokens`, for the body's duration."""
        stream = self._streams.get(member.actor_id)
        if stream is None or stream.is_ended:
            stream = StepStream(member, self.router_id, self._channels, self._membership)
            self._streams[member.actor_id] = stream
        stream.add(request_id, tokens)
        try:
            yield
        finally:
            stream.remove(request_id)
            self._close_streams_of_the_gone()

    async def close(self) -> None:
        """Ends every stream; their requests fail with Unavailable."""
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)

    def _close_streams_of_the_gone(self) -> None:
        present = {member.actor_id for member in self._membership.all_members()}
        for actor_id, stream in list(self._streams.items()):
            if stream.is_ended or (actor_id not in present and not stream.num_requests):
                stream.cancel()
                del self._streams[actor_id]


class StepStream:
    """The stream of one actor. When it breaks, its requests fail at once and the actor is reported lost."""

    def __init__(self, member: Member, router_id: str, channels: ChannelPool, membership: Membership) -> None:
        self._member = member
        self._router_id = router_id
        self._channels = channels
        self._membership = membership
        self._requests: dict[str, DecodedTokens] = {}
        # It outlives the request that opened it, which its log lines are not about.
        self.task = asyncio.create_task(self._run(), name=f"steps of {member.actor_id}", context=Context())

    @property
    def num_requests(self) -> int:
        """Requests whose tokens come on this stream."""
        return len(self._requests)

    @property
    def is_ended(self) -> bool:
        """The stream broke or was closed; a new one is needed."""
        return self.task.done()

    def add(self, request_id: str, tokens: DecodedTokens) -> None:
        """Tokens of this request go there from now on."""
        self._requests[request_id] = tokens

    def remove(self, request_id: str) -> None:
        """Tokens of this request are thrown away from now on."""
        self._requests.pop(request_id, None)

    def cancel(self) -> None:
        """Closes the stream; its requests fail."""
        self.task.cancel()
        self._fail_all("closed by the router")

    async def _run(self) -> None:
        """Reads until the stream ends, then fails what still waits: even an orderly end leaves their answers open."""
        reason = "ended by the actor"
        try:
            await self._read()
        except grpc.aio.AioRpcError as failure:
            reason = from_rpc_error(failure).message
            if is_actor_lost(failure) and self._membership.report_lost(self._member.actor_id):
                logger.warning("%s actor %s is lost: %s", self._member.stage, self._member.actor_id, reason)
        finally:
            self._fail_all(reason)

    async def _read(self) -> None:
        stub = language_pb2_grpc.LanguageServiceStub(self._channels.get(self._member.endpoint))
        async for response in stub.StreamSteps(language_pb2.StreamStepsRequest(router_id=self._router_id)):
            for output in response.outputs:
                tokens = self._requests.get(output.request_id)
                if tokens is not None:
                    tokens.put(tokens_of(output))

    def _fail_all(self, reason: str) -> None:
        for tokens in self._requests.values():
            tokens.fail(Unavailable(f"the step stream of actor {self._member.actor_id} broke: {reason}"))


def tokens_of(output: language_pb2.SequenceOutput) -> Tokens:
    """Keeps nothing of the step's message, which has the outputs of all requests."""
    logprobs = tuple(logprob.SerializeToString() for logprob in output.logprobs)
    return Tokens(tuple(output.token_ids), output.finish_reason, output.choice_index, logprobs)
