"""Client: for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Unpack, cast

import grpc

from triptych.client.answer import Answer, AnswerBuilder
from triptych.client.connection import Authority, channel_credentials, token_metadata
from triptych.client.content import ImageSource, Message, VideoSource
from triptych.client.request import NO_LIMIT, SamplingOptions, make_request, stage_number
from triptych.rpc.channels import channel_options
from triptych.rpc.status import from_rpc_error
from triptych.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc


class Client:
    """Talks to the router at `endpoint` (host:port). Calls raise the classes of `triptych.errors`.

    `timeout_s` holds for calls that bring none; `token` for a router that asks for one; `authority` for one with TLS: a
    PEM file of whom to trust, or True for the usual ones. Threads may share a client; close it, or use it in a `with`.
    """

    def __init__(
        self,
        endpoint: str = "127.0.0.1:50051",
        *,
        timeout_s: float = 120.0,
        token: str = "",
        authority: Authority = False,
    ) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._metadata = token_metadata(token)
        options = channel_options(NO_LIMIT)
        credentials = channel_credentials(authority)
        self._channel = (
            grpc.insecure_channel(endpoint, options=options)
            if credentials is None
            else grpc.secure_channel(endpoint, credentials, options=options)
        )
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)

    def ask(
        self,
        question: str,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        timeout_s: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer:
        """The answer to a question about pictures and videos, which stand before it in the order given."""
        return self.stream(question, images=images, videos=videos, timeout_s=timeout_s, **sampling).answer()

    def chat(
        self, messages: Sequence[Message], *, timeout_s: float | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Answer:
        """The answer to a chat: `[system("Be brief."), user(image("a.png"), "what is it?")]`, or mappings with role and
        content."""
        return self.stream(messages, timeout_s=timeout_s, **sampling).answer()

    def stream(
        self,
        question: str | Sequence[Message],
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        timeout_s: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AnswerStream:
        """The answer as it is generated: iterate over its pieces of text."""
        request = make_request(question, images, videos, sampling)
        call = self._inference.Generate(request, timeout=self._timeout(timeout_s), metadata=self._metadata)
        return AnswerStream(call, self._endpoint)

    def topology(self) -> admin_pb2.GetTopologyResponse:
        """Mode, model, and every stage with its actors."""
        with _errors(self._endpoint):
            request = admin_pb2.GetTopologyRequest()
            response: admin_pb2.GetTopologyResponse = self._admin.GetTopology(
                request, timeout=self._timeout_s, metadata=self._metadata
            )
        return response

    def actor_info(self, actor_id: str) -> admin_pb2.ActorInfo:
        """What a running actor says about itself: weights, counters, leases."""
        with _errors(self._endpoint):
            request = admin_pb2.GetActorInfoRequest(actor_id=actor_id)
            response: admin_pb2.GetActorInfoResponse = self._admin.GetActorInfo(
                request, timeout=self._timeout_s, metadata=self._metadata
            )
        return response.info

    def scale(
        self, stage: str, num_actors: int | None, *, wait: bool = True, timeout_s: float | None = None
    ) -> admin_pb2.StageStatus:
        """Sets the number of actors of a stage; with `wait` returns when it is reached.

        None gives the stage back to the scaling policy.
        """
        request = admin_pb2.ScaleRequest(
            stage=stage_number(stage), num_actors=num_actors or 0, wait=wait, automatic=num_actors is None
        )
        with _errors(self._endpoint):
            response: admin_pb2.ScaleResponse = self._admin.Scale(
                request, timeout=self._timeout(timeout_s), metadata=self._metadata
            )
        return response.status

    def move(
        self, from_stage: str, to_stage: str, actor_id: str = "", *, timeout_s: float | None = None
    ) -> admin_pb2.MoveActorResponse:
        """Moves a running actor to another stage, the one that has the least to do unless one is named."""
        request = admin_pb2.MoveActorRequest(
            from_stage=stage_number(from_stage), to_stage=stage_number(to_stage), actor_id=actor_id
        )
        with _errors(self._endpoint):
            response: admin_pb2.MoveActorResponse = self._admin.MoveActor(
                request, timeout=self._timeout(timeout_s), metadata=self._metadata
            )
        return response

    def close(self) -> None:
        """Ends running calls and the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _timeout(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s


class AnswerStream:
    """Iterates over the text as it comes, that of the first answer where there are several; `chunks()` has more.

    `answer()` is the whole, waiting for what has not come yet.
    """

    def __init__(self, call: Any, endpoint: str) -> None:
        self._call = call
        self._endpoint = endpoint
        self._builder = AnswerBuilder()

    def __iter__(self) -> Iterator[str]:
        for chunk in self.chunks():
            if chunk.text and chunk.choice_index == 0:
                yield chunk.text

    def chunks(self) -> Iterator[inference_pb2.TokenChunk]:
        """Text, tokens and logprobs of every answer as they come; `choice_index` says whose."""
        with _errors(self._endpoint):
            for response in self._call:
                chunk = self._builder.add(response)
                if chunk is not None:
                    yield chunk

    def answer(self) -> Answer:
        """The whole answer with its figures."""
        for _ in self.chunks():
            pass
        return self._builder.answer()

    def cancel(self) -> None:
        """Ends the generation on every actor."""
        self._call.cancel()


@contextmanager
def _errors(endpoint: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        # Raised errors of blocking calls are the calls themselves: code, details and metadata as in grpc.aio.
        raise from_rpc_error(cast(grpc.aio.AioRpcError, error), endpoint) from None
