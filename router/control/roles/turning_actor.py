"""TurningActor: one process with both halves of the model, of which one is on the device and works.

A plain class: the controller makes a Ray actor of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, dataclass

from encoder_service.actor import EncoderActor
from llm_service.actor import LlmActor
from llm_service.role import Role
from router.control.membership import StageName
from router.control.roles.host_weights import HostWeights
from triptych.config import DeploymentConfig, Mode
from triptych.errors import ConfigurationError, FailedPrecondition
from triptych.telemetry.logs import figures
from triptych.v1 import admin_pb2

logger = logging.getLogger(__name__)

Half = EncoderActor | LlmActor


@dataclass(frozen=True)
class TurnTimes:
    """drain_s: until the half that worked had nothing left; release_s, restore_s: weights off the device and onto it;
    turn_s: from the drain's end until the other half takes work."""

    drain_s: float
    release_s: float
    restore_s: float
    turn_s: float


class TurningActor:
    """`start`, then calls over gRPC to whichever half works, `move` between stages, then `drain` and `stop`.

    Both halves are made at the start: kernels compiled, graphs captured, KV pages allocated. To turn, the half that
    works takes no new requests and ends those it has; its weights leave the device and the other's come from pinned
    host memory to where they were. What the resting half holds under leases can be fetched all the time. Each half has
    its own incarnation id and endpoint, as if there were two actors that are never there at once.
    """

    def __init__(self, config: DeploymentConfig, stage: StageName, host: str = "127.0.0.1") -> None:
        if config.mode is not Mode.DISAGGREGATED:
            raise ConfigurationError(
                f"control.keep_both_halves=true in mode {config.mode}: expected mode disaggregated, where encoders and "
                "language actors are apart",
                field="control.keep_both_halves",
            )
        self._stage = stage
        # As which role the language half begins where the actor begins as an encoder.
        role = Role.PREFILL if stage is StageName.ENCODER else Role(stage)
        self._weights = {"vision": HostWeights(), "language": HostWeights()}
        self._encoder = EncoderActor(config, host, self._weights["vision"].hold)
        self._language = LlmActor(config, role, host=host, hold_weights=self._weights["language"].hold)
        self._turning = asyncio.Lock()
        self.last_turn: TurnTimes | None = None

    async def start(self) -> bytes:
        """Loads both halves, lets one rest, serves with the other; answers its serialized ActorInfo.

        Raises ModelError or ConfigurationError, and leaves nothing behind then.
        """
        try:
            # The tower first: the KV cache takes what is left.
            await self._encoder.start()
            if not self._weights["vision"].num_bytes:
                raise ConfigurationError(
                    "control.keep_both_halves=true, but the vision engine keeps its weights to itself: set "
                    "stages.encoder.engine to auto, fused or torch",
                    field="stages.encoder.engine",
                )
            await self._language.start()
            resting = self._other(self._active)
            await resting.pause(0.0)
            await self._release(resting)
        except BaseException:
            await self.stop()
            raise
        return self.describe().SerializeToString()

    def describe(self) -> admin_pb2.ActorInfo:
        """The half that works, at this moment."""
        return self._active.describe()

    async def move(self, stage: str, drain_s: float) -> bytes:
        """Takes work of `stage` from now on; the serialized ActorInfo of the half that does.

        Between encoder and language model the work under way has `drain_s` to end: then language requests end with
        Unavailable and go on elsewhere, while an encoder raises FailedPrecondition and stays what it is.
        """
        async with self._turning:
            target = StageName(stage)
            if target is not StageName.ENCODER:
                self._language.set_role(Role(target), drain_s)
            if (target is StageName.ENCODER) != (self._stage is StageName.ENCODER):
                await self._turn(target, drain_s)
            self._stage = target
            return self.describe().SerializeToString()

    async def drain(self, timeout_s: float) -> bool:
        """Takes no new work; True when all was finished and fetched, of both halves, within `timeout_s`."""
        return all(await asyncio.gather(self._encoder.drain(timeout_s), self._language.drain(timeout_s)))

    async def stop(self) -> None:
        """Ends what runs with Unavailable and lets go of everything. Idempotent."""
        await asyncio.gather(self._encoder.stop(), self._language.stop())

    async def ping(self) -> str:
        """The incarnation id of the half that works. Raises Unavailable when either engine has ended."""
        ids = await self._encoder.ping(), await self._language.ping()
        return ids[0] if self._stage is StageName.ENCODER else ids[1]

    async def _turn(self, target: StageName, drain_s: float) -> None:
        leaving, coming = self._active, self._other(self._active)
        begun_s = time.monotonic()
        if not await leaving.pause(drain_s):
            await leaving.resume()
            raise FailedPrecondition(
                f"requests still ran here after {drain_s:g} s (control.drain_timeout_s); the actor stays in stage "
                f"{self._stage}",
                field="control.drain_timeout_s",
            )
        idle_s = time.monotonic()
        await self._release(leaving)
        released_s = time.monotonic()
        restore_s = await asyncio.to_thread(self._weights_of(coming).restore)
        await coming.resume()
        times = TurnTimes(idle_s - begun_s, released_s - idle_s, restore_s, time.monotonic() - idle_s)
        logger.info("stage %s instead of %s", target, self._stage, extra=figures(**asdict(times)))
        self.last_turn = times

    async def _release(self, half: Half) -> None:
        await asyncio.to_thread(self._weights_of(half).release)

    def _weights_of(self, half: Half) -> HostWeights:
        return self._weights["vision" if half is self._encoder else "language"]

    @property
    def _active(self) -> Half:
        return self._encoder if self._stage is StageName.ENCODER else self._language

    def _other(self, half: Half) -> Half:
        return self._language if half is self._encoder else self._encoder
