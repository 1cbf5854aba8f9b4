"""Actors that serve the real protos over real gRPC but compute nothing, and fail on command.

The token at absolute position p of any prompt is `token_at(p)`, so a resumed answer has one right continuation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from router_helpers import TINY_FOLDER

from router.control.membership import Member, Membership, StageName
from router.dispatch.dispatcher import Dispatcher
from triptych.config import DeploymentConfig
from triptych.errors import TriptychError
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.v1 import (
    common_pb2,
    encoder_pb2,
    encoder_pb2_grpc,
    language_pb2,
    language_pb2_grpc,
    tensor_pb2,
    tensor_pb2_grpc,
)

FIRST_TOKEN_ID = 300
LENGTH = common_pb2.FINISH_REASON_LENGTH


def token_at(position: int) -> int:
    return FIRST_TOKEN_ID + position % 64


@dataclass
class FakeTensors:
    """Stands for the transport: tensors by ticket id, shared by all fake actors of a test."""

    made: dict[str, asyncio.Event] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)

    def event(self, ticket_id: str) -> asyncio.Event:
        return self.made.setdefault(ticket_id, asyncio.Event())


class FakeActor(
    encoder_pb2_grpc.EncoderServiceServicer,
    language_pb2_grpc.LanguageServiceServicer,
    tensor_pb2_grpc.TensorServiceServicer,
):
    """One actor of any stage. `failure` is raised by its next calls; `gate`, when cleared, holds them up."""

    def __init__(self, actor_id: str, stage: StageName, tensors: FakeTensors, disaggregated: bool = True) -> None:
        self.actor_id = actor_id
        self.stage = stage
        self.disaggregated = disaggregated
        self.failure: TriptychError | None = None
        self.failures_left = 1_000
        self.gate = asyncio.Event()
        self.gate.set()
        self.decoding = asyncio.Event()
        self.decode_gate = asyncio.Event()
        self.decode_gate.set()
        self.dies_after: int | None = None
        self.step_s = 0.0
        self.first_token_finish = 0
        self.requests: list[Any] = []
        self.num_running = 0
        self.num_cancelled = 0
        self._tensors = tensors
        self._outputs: dict[str, asyncio.Queue[language_pb2.SequenceOutput]] = {}
        self._server = RpcServer("127.0.0.1", 0, 2**24)
        for add, module, name in (
            (encoder_pb2_grpc.add_EncoderServiceServicer_to_server, encoder_pb2, "EncoderService"),
            (language_pb2_grpc.add_LanguageServiceServicer_to_server, language_pb2, "LanguageService"),
            (tensor_pb2_grpc.add_TensorServiceServicer_to_server, tensor_pb2, "TensorService"),
        ):
            self._server.add(add, self, module.DESCRIPTOR.services_by_name[name].full_name)

    async def start(self) -> Member:
        port = await self._server.start()
        return Member(
            actor_id=self.actor_id,
            stage=self.stage,
            endpoint=f"127.0.0.1:{port}",
            host_id="host",
            lanes=("grpc",),
            model_fingerprint="weights",
            dtype=common_pb2.DATA_TYPE_FLOAT32,
            multimodal_disaggregated=self.disaggregated and self.stage is not StageName.ENCODER,
        )

    async def die(self) -> None:
        await self._server.stop(0)

    async def Encode(self, request: encoder_pb2.EncodeRequest, context: Any) -> encoder_pb2.EncodeResponse:
        async with self._call(request):
            for item in request.items:
                self._tensors.event(item.ticket.ticket_id).set()
            return encoder_pb2.EncodeResponse(
                results=[encoder_pb2.EncodeResult(ticket_id=i.ticket.ticket_id, encode_s=0.5) for i in request.items]
            )

    async def Prefill(self, request: language_pb2.PrefillRequest, context: Any) -> language_pb2.PrefillResponse:
        async with self._call(request):
            await self._fetch_embeddings(request.prompt)
            self._tensors.event(request.kv_ticket.ticket_id).set()
            return language_pb2.PrefillResponse(
                first_token_id=token_at(len(request.prompt.token_ids)),
                finish_reason=self.first_token_finish,
                embedding_lanes=["grpc"] if request.prompt.media else [],
                prefill_s=0.25,
            )

    async def Decode(self, request: language_pb2.DecodeRequest, context: Any) -> language_pb2.DecodeResponse:
        async with self._call(request):
            num_prompt = len(request.prompt.token_ids)
            first = 0
            if request.HasField("kv_ticket"):
                await self._tensors.event(request.kv_ticket.ticket_id).wait()
                first = 1
            else:
                await self._fetch_embeddings(request.prompt)
            for index in range(first, request.sampling.max_tokens):
                await self.decode_gate.wait()
                if index == self.dies_after:
                    asyncio.get_running_loop().create_task(self.die())
                    await asyncio.Event().wait()
                is_last = index == request.sampling.max_tokens - 1
                self._queue(request.router_id).put_nowait(
                    language_pb2.SequenceOutput(
                        request_id=request.request_id,
                        token_ids=[token_at(num_prompt + index)],
                        finish_reason=LENGTH if is_last else 0,
                    )
                )
                self.decoding.set()
                await asyncio.sleep(self.step_s)
            return language_pb2.DecodeResponse(finish_reason=LENGTH, kv_lane="grpc" if first else "", decode_s=0.125)

    async def StreamSteps(
        self, request: language_pb2.StreamStepsRequest, context: Any
    ) -> AsyncIterator[language_pb2.StreamStepsResponse]:
        queue = self._queue(request.router_id)
        while True:
            yield language_pb2.StreamStepsResponse(outputs=[await queue.get()])

    async def Release(self, request: tensor_pb2.ReleaseRequest, context: Any) -> tensor_pb2.ReleaseResponse:
        self._tensors.released.extend(request.ticket_ids)
        return tensor_pb2.ReleaseResponse()

    async def _fetch_embeddings(self, prompt: language_pb2.Prompt) -> None:
        for placement in prompt.media:
            if placement.HasField("ticket"):
                await self._tensors.event(placement.ticket.ticket_id).wait()

    def _queue(self, router_id: str) -> asyncio.Queue[language_pb2.SequenceOutput]:
        return self._outputs.setdefault(router_id, asyncio.Queue())

    def _call(self, request: Any) -> _Call:
        return _Call(self, request)


class _Call:
    """Counts a call while it runs, and fails it when the actor is told to."""

    def __init__(self, actor: FakeActor, request: Any) -> None:
        self._actor = actor
        self._request = request

    async def __aenter__(self) -> None:
        actor = self._actor
        actor.requests.append(self._request)
        actor.num_running += 1
        try:
            await actor.gate.wait()
            if actor.failure is not None and actor.failures_left > 0:
                actor.failures_left -= 1
                raise actor.failure
        except BaseException as error:
            self._end(error)
            raise

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self._actor.num_running -= 1
        self._actor.num_cancelled += isinstance(error, asyncio.CancelledError)


class FakeSystem:
    """Fake actors and a real dispatcher: `async with FakeSystem("encoder", "prefill", "decode") as system`."""

    def __init__(self, *stages: str, disaggregated: bool = True, **overrides: Any) -> None:
        self.tensors = FakeTensors()
        self.actors: dict[str, FakeActor] = {}
        self.membership = Membership()
        self.lost: list[str] = []
        self._stages = stages
        self._disaggregated = disaggregated
        mode = {} if disaggregated else {"mode": "colocated"}
        self.config = DeploymentConfig.from_sources(overrides=mode | overrides, environment={})

    async def __aenter__(self) -> FakeSystem:
        self._channels = ChannelPool(2**24)
        self.membership.on_lost(self.lost.append)
        self.dispatcher = Dispatcher(self.config, "tiny", TINY_FOLDER, self.membership, self._channels)
        for stage in self._stages:
            await self.add(stage)
        return self

    async def add(self, stage: str) -> FakeActor:
        """One more actor of a stage, named `<stage>-<n>`."""
        name = StageName(stage)
        number = sum(actor.stage is name for actor in self.actors.values())
        actor = FakeActor(f"{stage}-{number}", name, self.tensors, self._disaggregated)
        self.actors[actor.actor_id] = actor
        member = await actor.start()
        self.membership.set([*self.membership.all_members(), member])
        return actor

    async def __aexit__(self, *error: object) -> None:
        await self.dispatcher.close()
        await self._channels.close()
        for actor in self.actors.values():
            await actor.die()
