"""The follower of an LLM actor as the controller creates it: at the address of its node."""

from __future__ import annotations

from functools import partial

import ray.util

from llm_service.parallel.follower_actor import FollowerActor
from router.control.starts_once import StartsOnce
from triptych.config import DeploymentConfig
from triptych.telemetry.logs import set_up_logging


class NodeFollowerActor(FollowerActor):
    """Made on its node; `host` empty: the node's own address in the cluster. `role` is the stage's name."""

    def __init__(self, config: DeploymentConfig, role: str, rank: int, host: str) -> None:
        set_up_logging(config.telemetry)
        super().__init__(config, role, rank, host or ray.util.get_node_ip_address())
        self._started: StartsOnce[None] = StartsOnce()

    async def start(self, rendezvous: str) -> None:
        """As FollowerActor.start; waits for the first one when it was asked before."""
        await self._started(partial(super().start, rendezvous))
