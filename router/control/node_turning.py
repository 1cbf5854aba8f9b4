"""The actor with both halves of the model as the controller creates it: at the address of its node."""

from __future__ import annotations

import ray.util

from router.control.membership import StageName
from router.control.roles.turning_actor import TurningActor
from router.control.starts_once import StartsOnce
from triptych.config import DeploymentConfig
from triptych.telemetry.logs import set_up_logging


class NodeTurningActor(TurningActor):
    """Made on its node; `host` empty: the node's own address in the cluster."""

    def __init__(self, config: DeploymentConfig, stage: str, host: str) -> None:
        set_up_logging(config.telemetry)
        super().__init__(config, StageName(stage), host or ray.util.get_node_ip_address())
        self._started: StartsOnce[bytes] = StartsOnce()

    async def start(self) -> bytes:
        """The serialized ActorInfo as it is now, also when it was started before."""
        await self._started(super().start)
        return bytes(self.describe().SerializeToString())
