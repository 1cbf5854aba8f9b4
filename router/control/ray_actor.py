"""RayActor: one Ray actor as an ActorProcess."""

from __future__ import annotations

from collections.abc import Callable

from router.control.actor_calls import is_serving, set_role
from router.control.launcher import Health
from router.control.membership import StageName
from router.control.ray_process import RayProcess
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2


class RayActor:
    """`create` asks Ray for the process, or finds one that is there already; that is done by `place`."""

    def __init__(
        self, create: Callable[[], RayProcess], channels: ChannelPool, *, has_both_halves: bool = False
    ) -> None:
        self._create = create
        self._has_both_halves = has_both_halves
        self._channels = channels
        self._process: RayProcess | None = None
        self._endpoint = ""

    async def place(self) -> None:
        """Creates the actor and waits until its process runs. Raises Unavailable when that died."""
        self._process = self._create()
        await self._process.call("ping")

    async def start(self) -> admin_pb2.ActorInfo:
        """Waits until it serves. Raises the actor's own error, or Unavailable when it died."""
        assert self._process is not None
        info = admin_pb2.ActorInfo.FromString(await self._process.call("start"))
        self._endpoint = info.endpoint
        return info

    async def check(self, timeout_s: float) -> Health:
        """Asks over gRPC, as a router would; when that fails, asks Ray whether the process lives."""
        if self._process is None:
            return Health.GONE
        if await is_serving(self._channels, self._endpoint, timeout_s):
            return Health.SERVING
        return Health.GONE if await self._process.is_dead() else Health.SILENT

    async def drain(self, timeout_s: float) -> bool:
        """Asks the actor to finish its work; False when the deadline came first."""
        assert self._process is not None
        return bool(await self._process.call("drain", timeout_s))

    async def move(self, stage: StageName, drain_s: float) -> admin_pb2.ActorInfo:
        """Asks the actor to take another role: over gRPC, or where it has both halves through Ray, for it may answer
        from another endpoint then."""
        if self._has_both_halves:
            assert self._process is not None
            info = admin_pb2.ActorInfo.FromString(await self._process.call("move", str(stage), drain_s))
            self._endpoint = info.endpoint
            return info
        return await set_role(self._channels, self._endpoint, stage, drain_s)

    async def stop(self, grace_s: float) -> None:
        """Politely for `grace_s`, then by force."""
        process, self._process = self._process, None
        if process is None:
            return
        await process.stop(grace_s)
        if self._endpoint:
            await self._channels.drop(self._endpoint)
