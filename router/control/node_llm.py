"""The LLM actor as the controller creates it: at the address of its node, with a tower at hand for mode colocated."""

from __future__ import annotations

import ray.util

from llm_service.actor import LlmActor
from llm_service.embedder import Embedder
from router.control.starts_once import StartsOnce
from triptych.config import DeploymentConfig
from triptych.telemetry.logs import set_up_logging


class NodeLlmActor(LlmActor):
    """Made on its node; `host` empty: the node's own address in the cluster. `role` is the stage's name."""

    def __init__(self, config: DeploymentConfig, role: str, host: str) -> None:
        set_up_logging(config.telemetry)
        super().__init__(config, role, _build_embedder, host or ray.util.get_node_ip_address())
        self._started: StartsOnce[bytes] = StartsOnce()

    async def start(self) -> bytes:
        """The serialized ActorInfo as it is now, also when it was started before."""
        await self._started(super().start)
        return bytes(self._describe().SerializeToString())


async def _build_embedder(config: DeploymentConfig, actor_id: str) -> Embedder:
    # Imported only where the switch is off: a disaggregated LLM actor never loads the encoder's code.
    from router.control.colocated import build_embedder

    return await build_embedder(config, actor_id)
