"""RayLauncher: makes Ray actors of the plain classes EncoderActor and LlmActor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import ray
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.control.actor_options import actor_options, actor_section
from router.control.launcher import Health
from router.control.membership import StageName
from triptych.config import DeploymentConfig
from triptych.errors import TriptychError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2

logger = logging.getLogger(__name__)

# How long Ray may take to say whether a process that did not answer over gRPC is alive.
_PING_TIMEOUT_S = 1.0


class RayLauncher:
    """Creates actors in the cluster that this process is connected to; see `cluster.py`.

    `host` is the address they listen on and are reached at; empty: that of the node each one comes to run on.
    """

    def __init__(self, config: DeploymentConfig, channels: ChannelPool, host: str) -> None:
        self._config = config
        self._channels = channels
        self._host = host

    def launch(self, stage: StageName) -> RayActor:
        """An actor of `stage`; Ray is asked for it by `start`."""
        return RayActor(stage, lambda: self._create(stage), self._channels)

    def lacking(self, stage: StageName) -> str:
        """Compares what Ray has free with what an actor holds; summed over nodes, so it may miss what lies apart."""
        section = actor_section(self._config, stage)
        try:
            free = ray.available_resources()
        except ray.exceptions.RayError as error:
            logger.debug("available_resources: %s", error)
            return ""
        needs = {"CPU": section.num_cpus, "GPU": section.num_gpus}
        return " and ".join(
            f"{name}s ({need:g} an actor, {free.get(name, 0.0):g} free)"
            for name, need in needs.items()
            if need > free.get(name, 0.0)
        )

    def _create(self, stage: StageName) -> Any:
        options = actor_options(self._config, stage)
        # Imported here: the services bring torch along, which takes seconds.
        if stage is StageName.ENCODER:
            from router.control.node_encoder import NodeEncoderActor

            return ray.remote(NodeEncoderActor).options(**options).remote(self._config, self._host)
        from router.control.node_llm import NodeLlmActor

        return ray.remote(NodeLlmActor).options(**options).remote(self._config, str(stage), self._host)


class RayActor:
    """One Ray actor as an ActorProcess."""

    def __init__(self, stage: StageName, create: Callable[[], Any], channels: ChannelPool) -> None:
        self._stage = stage
        self._create = create
        self._channels = channels
        self._handle: Any = None
        self._endpoint = ""

    async def start(self) -> admin_pb2.ActorInfo:
        """Creates the actor and waits until it serves. Raises the actor's own error, or Unavailable when it died."""
        self._handle = self._create()
        info = admin_pb2.ActorInfo.FromString(await self._call("start", self._handle.start))
        self._endpoint = info.endpoint
        return info

    async def check(self, timeout_s: float) -> Health:
        """Asks over gRPC, as a router would; when that fails, asks Ray whether the process lives."""
        handle = self._handle
        if handle is None:
            return Health.GONE
        stub = health_pb2_grpc.HealthStub(self._channels.get(self._endpoint))
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return Health.SERVING
        except grpc.aio.AioRpcError as error:
            logger.debug("health of %s: %s", self._endpoint, error.details())
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await handle.ping.remote()
        except ray.exceptions.ActorDiedError:
            return Health.GONE
        except (TimeoutError, ray.exceptions.RayError):
            return Health.SILENT
        return Health.SILENT

    async def drain(self, timeout_s: float) -> bool:
        """Asks the actor to finish its work; False when the deadline came first."""
        return bool(await self._call("drain", self._handle.drain, timeout_s))

    async def stop(self, grace_s: float) -> None:
        """The actor's own `stop` lets go of everything within `grace_s`; then the process is ended at once.

        Ray's polite end (`__ray_terminate__`) would only add the seconds that a Python with torch takes to unload.
        """
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            if grace_s > 0:
                async with asyncio.timeout(grace_s):
                    await handle.stop.remote()
        except (TimeoutError, ray.exceptions.RayError) as error:
            logger.debug("stopping an actor of stage %s: %s", self._stage, type(error).__name__)
        finally:
            _kill(handle)
        if self._endpoint:
            await self._channels.drop(self._endpoint)

    async def _call(self, what: str, method: Any, *arguments: Any) -> Any:
        try:
            return await method.remote(*arguments)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TriptychError):
                raise error.cause from None
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise Unavailable(f"{self._stage} actor failed to {what}: {type(cause).__name__}: {cause}") from error
        except ray.exceptions.RayError as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise Unavailable(
                f"{self._stage} actor died in {what}: {reason} "
                "(its log is in the Ray session folder, /tmp/ray/session_latest/logs by default)"
            ) from None


def _kill(handle: Any) -> None:
    try:
        ray.kill(handle, no_restart=True)
    except Exception as error:
        # The cluster went first; its processes are gone with it.
        logger.debug("ray.kill: %s", error)
