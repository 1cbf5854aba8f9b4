"""The LLM actor as the controller creates it: at the address of its node, with a tower at hand for mode colocated."""

from __future__ import annotations

import ray.util

from llm_service.actor import LlmActor
from llm_service.embedder import Embedder
from triptych.config import DeploymentConfig
from triptych.telemetry.logs import set_up_logging


class NodeLlmActor(LlmActor):
    """Made on its node; `host` empty: the node's own address in the cluster. `role` is the stage's name."""

    def __init__(self, config: DeploymentConfig, role: str, host: str) -> None:
        set_up_logging(config.telemetry)
        super().__init__(config, role, _build_embedder, host or ray.util.get_node_ip_address())


async def _build_embedder(config: DeploymentConfig, actor_id: str) -> Embedder:
    # Imported only where the switch is off: a disaggregated LLM actor never loads the encoder's code.
    from router.control.colocated import build_embedder

    return await build_embedder(config, actor_id)
