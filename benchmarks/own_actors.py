"""Real actors in this process, on the caller's event loop, for a real controller: for tests and measurements."""

from __future__ import annotations

import asyncio
import time

from encoder_service.actor import EncoderActor
from llm_service.actor import LlmActor
from router.control.actor_calls import set_role
from router.control.launcher import Health
from router.control.membership import StageName
from router.control.roles.turning_actor import TurningActor
from triptych.config import DeploymentConfig
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2

Actor = EncoderActor | LlmActor | TurningActor


class OwnProcess:
    """Moves as an actor on Ray does: over gRPC."""

    def __init__(self, actor: Actor, channels: ChannelPool, one_at_a_time: asyncio.Lock) -> None:
        self.actor = actor
        self._one_at_a_time = one_at_a_time
        self.move_s: list[float] = []
        self._channels = channels
        self._endpoint = ""

    async def place(self) -> None:
        return

    async def start(self) -> admin_pb2.ActorInfo:
        # Graphs are not to be captured while others are.
        async with self._one_at_a_time:
            info = admin_pb2.ActorInfo.FromString(await self.actor.start())
        self._endpoint = info.endpoint
        return info

    async def check(self, timeout_s: float) -> Health:
        return Health.SERVING

    async def drain(self, timeout_s: float) -> bool:
        return await self.actor.drain(timeout_s)

    async def move(self, stage: StageName, drain_s: float) -> admin_pb2.ActorInfo:
        begun_s = time.monotonic()
        if isinstance(self.actor, TurningActor):
            info = admin_pb2.ActorInfo.FromString(await self.actor.move(str(stage), drain_s))
        else:
            info = await set_role(self._channels, self._endpoint, stage, drain_s)
        self.move_s.append(time.monotonic() - begun_s)
        return info

    async def stop(self, grace_s: float) -> None:
        await self.actor.stop()


class OwnLauncher:
    """Notes every actor that it made."""

    def __init__(self, config: DeploymentConfig) -> None:
        self.processes: list[OwnProcess] = []
        self._config = config
        self._one_at_a_time = asyncio.Lock()
        self._channels = ChannelPool(config.limits.max_message_bytes)

    def launch(self, stage: StageName) -> OwnProcess:
        self.processes.append(OwnProcess(self._make(stage), self._channels, self._one_at_a_time))
        return self.processes[-1]

    def running(self) -> list[tuple[StageName, OwnProcess]]:
        return []

    def lacking(self, stage: StageName) -> str:
        return ""

    def _make(self, stage: StageName) -> Actor:
        if self._config.control.keep_both_halves:
            return TurningActor(self._config, stage)
        return EncoderActor(self._config) if stage is StageName.ENCODER else LlmActor(self._config, stage)

    async def close(self) -> None:
        await asyncio.gather(*(process.actor.stop() for process in self.processes))
        await self._channels.close()
