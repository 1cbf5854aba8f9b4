"""The follower of an LLM actor as the controller creates it: at the address of its node."""

from __future__ import annotations

import ray.util

from llm_service.parallel.follower_actor import FollowerActor
from triptych.config import DeploymentConfig
from triptych.telemetry.logs import set_up_logging


class NodeFollowerActor(FollowerActor):
    """Made on its node; `host` empty: the node's own address in the cluster. `role` is the stage's name."""

    def __init__(self, config: DeploymentConfig, role: str, rank: int, host: str) -> None:
        set_up_logging(config.telemetry)
        super().__init__(config, role, rank, host or ray.util.get_node_ip_address())
