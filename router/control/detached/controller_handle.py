"""ControllerHandle: finds the controller of a Ray namespace, makes it, ends it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import ray

from router.control.actor_name import CONTROLLER
from triptych.config import DeploymentConfig
from triptych.errors import ConfigurationError, Unavailable

logger = logging.getLogger(__name__)

# It holds a little of a node's CPUs, or the node would count as idle.
_NUM_CPUS = 0.1
# How long its process may take to begin, and after a crash to find the actors again.
_BEGIN_TIMEOUT_S = 60.0
_END_GRACE_S = 5.0
# What two routers of one deployment must agree on.
_SHARED_SECTIONS = ("mode", "model")


class ControllerHandle:
    """Of the namespace in `config`. `host`: as of RayLauncher."""

    def __init__(self, config: DeploymentConfig, host: str = "") -> None:
        self._config = config
        self._host = host

    async def make(self) -> bool:
        """Makes the controller unless it is there; whether it was made now.

        Raises ConfigurationError when the one that is there serves something else.
        """
        if self._find() is not None:
            await self._check_configuration()
            return False
        from router.control.detached.controller_actor import ControllerActor

        ray.remote(ControllerActor).options(
            name=CONTROLLER,
            namespace=self._config.control.namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            # Its methods may be called again by another process.
            max_task_retries=0,
            num_cpus=_NUM_CPUS,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        ).remote(self._config, self._host)
        return True

    async def endpoint(self) -> str:
        """host:port of its gRPC services. Raises Unavailable while it is not there."""
        return str(await self._call("endpoint"))

    async def end(self) -> bool:
        """Ends the controller and all its actors; False when there is none."""
        if (handle := self._find()) is None:
            return False
        try:
            await self._call("end", _END_GRACE_S)
        finally:
            ray.kill(handle, no_restart=True)
        return True

    async def _check_configuration(self) -> None:
        theirs, ours = json.loads(await self._call("configuration")), self._config.model_dump(mode="json")
        for section in _SHARED_SECTIONS:
            if theirs[section] != ours[section]:
                raise ConfigurationError(
                    f"the deployment in Ray namespace {self._config.control.namespace!r} has {section} "
                    f"{theirs[section]!r}, this router is to serve {ours[section]!r}: choose another "
                    "control.namespace, or end that deployment with `triptych down`",
                    field="control.namespace",
                )

    def _find(self) -> Any | None:
        try:
            return ray.get_actor(CONTROLLER, namespace=self._config.control.namespace)
        except ValueError:
            return None

    async def _call(self, method: str, *arguments: Any) -> Any:
        handle = self._find()
        if handle is None:
            raise Unavailable(f"no controller in Ray namespace {self._config.control.namespace!r}")
        try:
            async with asyncio.timeout(_BEGIN_TIMEOUT_S):
                return await getattr(handle, method).remote(*arguments)
        except TimeoutError:
            raise Unavailable(f"the controller did not answer {method} within {_BEGIN_TIMEOUT_S:g} s") from None
        except ray.exceptions.RayError as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise Unavailable(f"the controller can't be asked for {method}: {reason}") from None
