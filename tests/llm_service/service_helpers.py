"""Running LLM actors, an encoder that is only its leases, and a router that is only its step stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as Seq
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import grpc
import pytest
import torch
from engine_helpers import Case, Model

from llm_service.actor import LlmActor
from llm_service.embedder import EmbeddedMedia, MediaInput
from triptych.config import DeploymentConfig
from triptych.errors import TriptychError
from triptych.models.qwen2_5_vl.fingerprint import model_fingerprint
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.rpc.status import from_rpc_error
from triptych.transport.host import host_id
from triptych.transport.lease import LeaseTable
from triptych.transport.service import SERVICE_NAME, TensorService
from triptych.transport.ticket import Ticket, new_id
from triptych.transport.wire import add_tensor_service
from triptych.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    language_pb2,
    language_pb2_grpc,
)

PAGE_SIZE = 8
LANES = ("grpc",)
TIMEOUT_S = 20.0
ROUTER_ID = "router-1"
KINDS = {"image": common_pb2.MEDIA_KIND_IMAGE, "video": common_pb2.MEDIA_KIND_VIDEO}


def make_config(model: Model, **section: object) -> DeploymentConfig:
    stage = {"page_size": PAGE_SIZE, "num_pages": 200} | section
    return DeploymentConfig.model_validate(
        {
            "model": {"path": str(model.folder), "device": "cpu"},
            "stages": {"prefill": stage, "decode": stage, "prefill_decode": stage},
            "transport": {"lanes": LANES, "unknown_ticket_wait_s": 2.0},
            "control": {"health_timeout_s": 0.5},
        }
    )


class FakeEmbedder:
    """A vision tower in the actor's process, which knows the embeddings of the test's cases by content key."""

    def __init__(self, cases: Seq[Case]) -> None:
        self.by_key = {
            span.content_key: tensor
            for case in cases
            for span, tensor in zip(case.prompt.media, case.embeddings, strict=True)
        }
        self.is_closed = False

    async def embed(self, items: Seq[MediaInput]) -> EmbeddedMedia:
        return EmbeddedMedia(tuple(self.by_key[item.content_key] for item in items), queue_s=0.25, encode_s=0.5)

    def weights(self) -> admin_pb2.Weights:
        return admin_pb2.Weights(num_visual_parameters=1_000, num_bytes=4_000)

    def counters(self) -> admin_pb2.EncoderCounters:
        return admin_pb2.EncoderCounters(accepted_items=len(self.by_key))

    async def close(self) -> None:
        self.is_closed = True


class Producer:
    """An encoder as far as an LLM actor sees it: real leases behind a real TensorService."""

    def __init__(self, model: Model, config: DeploymentConfig) -> None:
        self.producer_id = "encoder-1"
        self.fingerprint = model_fingerprint(model.folder)
        self.leases = LeaseTable(config.transport.lease_s, config.transport.unknown_ticket_wait_s)
        self.service = TensorService(self.leases, self.producer_id, self.fingerprint, config.transport)
        self.server = RpcServer("127.0.0.1", 0, config.limits.max_message_bytes)
        self.endpoint = ""

    async def start(self) -> None:
        self.server.add(add_tensor_service, self.service, SERVICE_NAME)
        self.endpoint = f"127.0.0.1:{await self.server.start()}"

    async def stop(self) -> None:
        self.leases.close()
        await self.server.stop(0)
        self.service.close()

    def ticket(self, tensor: torch.Tensor, content_key: str) -> Ticket:
        return Ticket(
            ticket_id=new_id(),
            producer_id=self.producer_id,
            producer_endpoint=self.endpoint,
            producer_host_id=host_id(),
            model_fingerprint=self.fingerprint,
            dtype=tensor.dtype,
            shape=tuple(tensor.shape),
            lanes=LANES,
            content_key=content_key,
        )


class Router:
    """Reads one actor's step stream into a list of tokens for each request."""

    def __init__(self, stub: language_pb2_grpc.LanguageServiceStub) -> None:
        self._call = stub.StreamSteps(language_pb2.StreamStepsRequest(router_id=ROUTER_ID))
        self._task = asyncio.create_task(self._read())
        self.tokens: dict[str, list[int]] = {}
        self.finish_reasons: dict[str, int] = {}
        self.messages: list[language_pb2.StreamStepsResponse] = []

    async def _read(self) -> None:
        async for message in self._call:
            self.messages.append(message)
            for output in message.outputs:
                self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
                if output.finish_reason:
                    self.finish_reasons[output.request_id] = output.finish_reason

    async def answer(self, request_id: str) -> list[int]:
        """All tokens of a request, once the last has come: the stream and the call's response race each other here."""
        for _ in range(1_000):
            if request_id in self.finish_reasons:
                return self.tokens[request_id]
            await asyncio.sleep(0.002)
        raise AssertionError(f"{request_id} did not finish: {self.tokens.get(request_id)}")

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class RunningActor:
    """An actor with the stubs to call it."""

    def __init__(self, actor: LlmActor, info: admin_pb2.ActorInfo, channel: grpc.aio.Channel) -> None:
        self.actor = actor
        self.info = info
        self.channel = channel
        self.language = language_pb2_grpc.LanguageServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)

    async def ask(self) -> admin_pb2.ActorInfo:
        response: admin_pb2.GetActorInfoResponse = await self.admin.GetActorInfo(admin_pb2.GetActorInfoRequest())
        return response.info

    async def wait_released(self) -> admin_pb2.ActorInfo:
        """The actor's info once it has no request and holds no page and no lease; fails after some seconds."""
        for _ in range(400):
            info = await self.ask()
            num_requests = info.language.waiting_requests + info.language.running_requests
            if num_requests + info.language.held_pages + info.leases.held_leases == 0:
                return info
            await asyncio.sleep(0.01)
        raise AssertionError(f"still held: {info}")


class Cluster:
    """Actors, a producer and a router in this process, joined by gRPC; all stopped at the end."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._stack = AsyncExitStack()
        self._channels = ChannelPool(64 * 1024 * 1024)
        self.producer = Producer(model, make_config(model))

    async def wait_released(self) -> None:
        """Until the producer holds nothing: a release may arrive after the answer. Fails after some seconds."""
        for _ in range(400):
            if self.producer.leases.counters().held_leases == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"still held: {self.producer.leases.counters()}")

    async def __aenter__(self) -> Cluster:
        self._stack.push_async_callback(self._channels.close)
        await self.producer.start()
        self._stack.push_async_callback(self.producer.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def actor(
        self, role: str, config: DeploymentConfig | None = None, embedder: FakeEmbedder | None = None
    ) -> RunningActor:
        async def build_embedder(config: DeploymentConfig, actor_id: str) -> FakeEmbedder:
            assert embedder is not None
            return embedder

        actor = LlmActor(config or make_config(self.model), role, build_embedder)
        info = admin_pb2.ActorInfo.FromString(await actor.start())
        self._stack.push_async_callback(actor.stop)
        return RunningActor(actor, info, self._channels.get(info.endpoint))

    async def router(self, running: RunningActor) -> Router:
        router = Router(running.language)
        self._stack.push_async_callback(router.close)
        return router

    def prompt(self, case: Case, grant: bool = True, raw: bool = False) -> language_pb2.Prompt:
        """The case's prompt, its embeddings granted at the producer (or only named)."""
        prompt = language_pb2.Prompt(token_ids=case.prompt.token_ids)
        for span, tensor in zip(case.prompt.media, case.embeddings, strict=True):
            placement = prompt.media.add(
                offset=span.offset,
                length=span.length,
                kind=KINDS[span.kind],
                grid=common_pb2.Grid(t=span.grid.t, h=span.grid.h, w=span.grid.w),
                second_per_grid_t=span.second_per_grid_t,
                content_key=span.content_key,
            )
            if raw:
                placement.media.data = b"pixels"
                continue
            ticket = self.producer.ticket(tensor, span.content_key)
            placement.ticket.CopyFrom(ticket.to_proto())
            if grant:
                self.producer.leases.grant(ticket.ticket_id, tensor)
        return prompt

    def kv_ticket(self, running: RunningActor, num_prompt_tokens: int, page_size: int = PAGE_SIZE) -> common_pb2.Ticket:
        """What a router writes for the pages of a prompt."""
        text, info = self.model.config.text, running.info
        num_pages = -(-num_prompt_tokens // page_size)
        return common_pb2.Ticket(
            ticket_id=new_id(),
            producer_id=info.actor_id,
            producer_endpoint=info.endpoint,
            producer_host_id=info.host_id,
            model_fingerprint=info.model_fingerprint,
            dtype=info.dtype,
            shape=[num_pages, text.num_hidden_layers, 2, page_size, text.num_key_value_heads, text.head_dim],
            lanes=info.lanes,
        )


def sampling(max_tokens: int = 64, **fields: object) -> common_pb2.SamplingParameters:
    values = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True} | fields
    return common_pb2.SamplingParameters(**values)  # type: ignore[arg-type]


async def error_of(call: Any) -> TriptychError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def decode_request(cluster: Cluster, case: Case, request_id: str, **fields: Any) -> language_pb2.DecodeRequest:
    prompt = fields.pop("prompt", None) or cluster.prompt(case)
    values = {"sampling": sampling()} | fields
    return language_pb2.DecodeRequest(request_id=request_id, router_id=ROUTER_ID, prompt=prompt, **values)


async def wait_for_tokens(tokens: dict[str, list[int]], request_id: str) -> None:
    for _ in range(500):
        if tokens.get(request_id):
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"no tokens of {request_id}")
