"""RayProcess: one process that Ray runs for the controller, seen through its actor handle."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray

from router.control.membership import StageName
from triptych.errors import TriptychError, Unavailable

logger = logging.getLogger(__name__)

# How long Ray may take to say whether a process that did not answer over gRPC is alive.
_PING_TIMEOUT_S = 1.0


class RayProcess:
    """Calls its methods by name and ends it. `handle` is Ray's, of one of the plain actor classes."""

    def __init__(self, stage: StageName, handle: Any) -> None:
        self._stage = stage
        self._handle = handle

    async def call(self, method: str, *arguments: Any) -> Any:
        """Raises the actor's own TriptychError, or Unavailable when it died or failed otherwise."""
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TriptychError):
                raise error.cause from None
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise Unavailable(f"{self._stage} actor failed to {method}: {type(cause).__name__}: {cause}") from error
        except ray.exceptions.RayError as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise Unavailable(
                f"{self._stage} actor died in {method}: {reason} "
                "(its log is in the Ray session folder, /tmp/ray/session_latest/logs by default)"
            ) from None

    async def is_dead(self) -> bool:
        """Whether the process is gone for certain."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await self._handle.ping.remote()
        except ray.exceptions.ActorDiedError:
            return True
        except (TimeoutError, ray.exceptions.RayError):
            return False
        return False

    async def stop(self, grace_s: float) -> None:
        """The actor's own `stop` lets go of everything within `grace_s`; then the process is ended at once.

        Ray's polite end (`__ray_terminate__`) would only add the seconds that a Python with torch takes to unload.
        """
        try:
            if grace_s > 0:
                async with asyncio.timeout(grace_s):
                    await self._handle.stop.remote()
        except (TimeoutError, ray.exceptions.RayError) as error:
            logger.debug("stopping an actor of stage %s: %s", self._stage, type(error).__name__)
        finally:
            self.kill()

    def kill(self) -> None:
        """At once. Never raises."""
        try:
            ray.kill(self._handle, no_restart=True)
        except Exception as error:
            # The cluster went first; its processes are gone with it.
            logger.debug("ray.kill: %s", error)
