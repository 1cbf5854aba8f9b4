"""The whole system in one process: real encoder and LLM actors, dispatcher and gRPC API on one event loop, no Ray.

    async with InProcessSystem(model_folder, Topology(encoder=1, prefill=1, decode=1)) as system:
        answer = await system.client.ask("what is it?", images=[picture])

Everything between the parts goes over gRPC on loopback and through shared memory, as between processes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from encoder_service.actor import EncoderActor
from llm_service.actor import LlmActor
from router.api.admin_service import AdminService
from router.api.answering import AnsweringService
from router.api.inference_service import InferenceService
from router.control.colocated import build_embedder
from router.control.membership import Member, Membership, StageName
from router.dispatch.dispatcher import Dispatcher
from triptych.client import AsyncClient
from triptych.config import DeploymentConfig
from triptych.errors import Unavailable
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.rpc.tls import StageTls
from triptych.switch import SWITCH
from triptych.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc

Actor = EncoderActor | LlmActor
TOKENIZER_FILES = ("chat_template.json", "tokenizer.json", "tokenizer_config.json")
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "generation_config.json")


@dataclass(frozen=True)
class Topology:
    """How many actors of each stage; `colocated` LLM actors carry the vision tower."""

    encoder: int = 0
    prefill: int = 0
    decode: int = 0
    prefill_decode: int = 0
    colocated: bool = False

    def count(self, stage: StageName) -> int:
        return int(getattr(self, stage))

    def __str__(self) -> str:
        if self.colocated:
            return f"{self.prefill_decode}-colocated"
        counts = {"E": self.encoder, "P": self.prefill, "D": self.decode, "PD": self.prefill_decode}
        return "+".join(f"{number}{name}" for name, number in counts.items() if number)


ONE_OF_TWO = Topology(encoder=1, prefill_decode=1)
ONE_OF_EACH = Topology(encoder=1, prefill=1, decode=1)
TWO_ENCODERS = Topology(encoder=2, prefill=1, decode=2)
COLOCATED = Topology(prefill_decode=1, colocated=True)
TOPOLOGIES = (ONE_OF_TWO, ONE_OF_EACH, TWO_ENCODERS, COLOCATED)


class InProcessSystem:
    """Starts the actors of `topology` in `async with`, but for those of stages that are `elsewhere`, which come by
    `adopt`; `overrides` are configuration values, nested."""

    def __init__(
        self, model_folder: Path, topology: Topology, elsewhere: Collection[StageName] = (), **overrides: Any
    ) -> None:
        self.topology = topology
        self._elsewhere = frozenset(elsewhere)
        self._adopted: list[str] = []
        self.membership = Membership()
        self.actors: dict[str, Actor] = {}
        self._infos: dict[str, admin_pb2.ActorInfo] = {}
        self.config = DeploymentConfig.from_sources(
            overrides=_merge(_base_values(model_folder, topology), overrides), environment={}
        )

    async def __aenter__(self) -> InProcessSystem:
        config = self.config
        self._channels = ChannelPool(config.limits.max_message_bytes, StageTls.from_config(config.security.stages))
        self.dispatcher = Dispatcher(config, "tiny", Path(config.model.path), self.membership, self._channels)
        self._server = RpcServer("127.0.0.1", 0, config.limits.max_message_bytes)
        self.answering = AnsweringService.over(self.dispatcher, config, "tiny")
        self._server.add(
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            InferenceService(self.answering),
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
        )
        self._server.add(
            admin_pb2_grpc.add_AdminServiceServicer_to_server,
            AdminService(config, "tiny", self.membership, self._channels, _NoScaler(), self.answering.metrics.counters),
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
        )
        self.endpoint = f"127.0.0.1:{await self._server.start()}"
        self.client = AsyncClient(self.endpoint, timeout_s=30)
        for stage in StageName:
            for _ in range(0 if stage in self._elsewhere else self.topology.count(stage)):
                await self.add(stage)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()
        await self._server.stop(0)
        await self.dispatcher.close()
        await self.answering.close()
        await asyncio.gather(*(actor.stop() for actor in self.actors.values()))
        await self._channels.close()

    async def add(self, stage: StageName) -> Member:
        """Starts one more actor of a stage and makes it a member."""
        actor: Actor
        if stage is StageName.ENCODER:
            actor = EncoderActor(self.config)
        else:
            actor = LlmActor(self.config, stage, build_embedder)
        with _switch(is_disaggregated=not self.topology.colocated):
            info = admin_pb2.ActorInfo.FromString(await actor.start())
        member = Member.from_info(info)
        self.actors[member.actor_id] = actor
        self.membership.set([*self.membership.all_members(), member])
        return member

    def adopt(self, info: admin_pb2.ActorInfo) -> None:
        """Makes an actor of another process a member."""
        member = Member.from_info(info)
        self._adopted.append(member.actor_id)
        self.membership.set([*self.membership.all_members(), member])

    @property
    def actor_ids(self) -> list[str]:
        """Of all actors, wherever they are."""
        return [*self.actors, *self._adopted]

    async def kill(self, actor_id: str) -> None:
        """Ends an actor without warning anybody."""
        await self.actors.pop(actor_id).stop()

    def ids(self, stage: StageName) -> list[str]:
        """Ids of the members of a stage."""
        return [member.actor_id for member in self.membership.members(stage)]

    async def info(self, actor_id: str) -> admin_pb2.ActorInfo:
        """What the running actor says about itself, asked through the router."""
        return await self.client.actor_info(actor_id)

    async def held(self) -> dict[str, int]:
        """Everything that is held for requests, over all actors and the router; all zero when the system is idle."""
        held = {"router_requests": self.dispatcher.num_pending, "leases": 0, "lease_bytes": 0, "tickets": 0}
        held |= {"pages": 0, "running": 0, "waiting": 0, "patches": 0}
        for actor_id in self.actor_ids:
            info = await self.info(actor_id)
            held["leases"] += info.leases.held_leases
            held["lease_bytes"] += info.leases.held_bytes
            held["tickets"] += info.leases.pending_tickets
            held["pages"] += info.language.held_pages
            held["running"] += info.language.running_requests
            held["waiting"] += info.language.waiting_requests
            held["patches"] += info.encoder.pending_patches
        return held

    async def wait_until_nothing_is_held(self, timeout_s: float = 5.0) -> None:
        """Raises AssertionError, saying what, when something stays held."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while any((held := await self.held()).values()):
            assert asyncio.get_running_loop().time() < deadline, f"still held: {held}"
            await asyncio.sleep(0.02)


def write_random_model(folder: Path) -> None:
    """A checkpoint with the small model's architecture and tokenizer and random weights, wide enough that the likeliest
    token is clearly ahead and that pictures matter."""
    torch.manual_seed(1)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(BUILT_IN_FOLDER)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5 if "embed_tokens" in name else 1.2 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    for name in (*TOKENIZER_FILES, *PROCESSOR_FILES):
        if (BUILT_IN_FOLDER / name).is_file():
            shutil.copy(BUILT_IN_FOLDER / name, folder / name)


class _NoScaler:
    """The harness has no controller: actors are added by hand."""

    def topology(self) -> list[admin_pb2.StageStatus]:
        return []

    async def scale(self, stage: StageName, num_actors: int, *, wait: bool, timeout_s: float) -> admin_pb2.StageStatus:
        raise Unavailable("this system has no controller: add actors by hand")

    async def move(
        self, from_stage: StageName, to_stage: StageName, actor_id: str = "", *, is_automatic: bool = False
    ) -> str:
        raise Unavailable("this system has no controller: move actors by hand")

    def unpin(self, stage: StageName) -> None:
        raise Unavailable("this system has no controller: add actors by hand")


@contextmanager
def _switch(is_disaggregated: bool) -> Iterator[None]:
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1" if is_disaggregated else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def _base_values(model_folder: Path, topology: Topology) -> dict[str, Any]:
    language = {"num_pages": 256, "page_size": 16}
    stages = {stage.value: {"replicas": topology.count(stage)} for stage in StageName}
    for stage in (StageName.PREFILL, StageName.DECODE, StageName.PREFILL_DECODE):
        stages[stage.value] |= language
    return {
        "mode": "colocated" if topology.colocated else "disaggregated",
        "model": {"path": str(model_folder), "dtype": "float32", "device": "cpu"},
        "stages": stages,
        "transport": {"shared_memory_bytes": 32 * 2**20},
    }


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        is_nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if is_nested else value
    return merged
