"""The encoder actor as the controller creates it: at the address of the node that it came to run on."""

from __future__ import annotations

import ray.util

from encoder_service.actor import EncoderActor
from router.control.starts_once import StartsOnce
from triptych.config import DeploymentConfig
from triptych.telemetry.logs import set_up_logging


class NodeEncoderActor(EncoderActor):
    """Made on its node; `host` empty: the node's own address in the cluster."""

    def __init__(self, config: DeploymentConfig, host: str) -> None:
        set_up_logging(config.telemetry)
        super().__init__(config, host or ray.util.get_node_ip_address())
        self._started: StartsOnce[bytes] = StartsOnce()

    async def start(self) -> bytes:
        """The serialized ActorInfo as it is now, also when it was started before."""
        await self._started(super().start)
        return bytes(self._describe().SerializeToString())
