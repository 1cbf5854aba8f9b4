"""RayLauncher: makes Ray actors of the plain classes EncoderActor, LlmActor and FollowerActor."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from router.control.actor_options import (
    actor_options,
    actor_section,
    num_ranks,
    placement_strategy,
    rank_bundle,
)
from router.control.launcher import ActorProcess
from router.control.membership import StageName
from router.control.ray_actor import RayActor
from router.control.ray_group import RayActorGroup
from router.control.ray_process import RayProcess
from triptych.config import DeploymentConfig
from triptych.rpc.channels import ChannelPool

logger = logging.getLogger(__name__)


class RayLauncher:
    """Creates actors in the cluster that this process is connected to; see `cluster.py`.

    `host` is the address they listen on and are reached at; empty: that of the node each one comes to run on.
    """

    def __init__(self, config: DeploymentConfig, channels: ChannelPool, host: str) -> None:
        self._config = config
        self._channels = channels
        self._host = host

    def launch(self, stage: StageName) -> ActorProcess:
        """An actor of `stage`, of one process or of several; Ray is asked for them by `start`."""
        size = num_ranks(self._config, stage)
        if size == 1:
            return RayActor(partial(self._create, stage), self._channels)
        bundles = [rank_bundle(self._config, stage)] * size
        strategy = placement_strategy(self._config, stage)
        return RayActorGroup(partial(self._create_rank, stage), bundles, strategy, self._channels)

    def lacking(self, stage: StageName) -> str:
        """Compares what Ray has free with what an actor holds; summed over nodes, so it may miss what lies apart."""
        section = actor_section(self._config, stage)
        try:
            free = ray.available_resources()
        except ray.exceptions.RayError as error:
            logger.debug("available_resources: %s", error)
            return ""
        size = num_ranks(self._config, stage)
        needs = {"CPU": size * section.num_cpus, "GPU": size * section.num_gpus}
        return " and ".join(
            f"{name}s ({need:g} an actor, {free.get(name, 0.0):g} free)"
            for name, need in needs.items()
            if need > free.get(name, 0.0)
        )

    def _create(self, stage: StageName) -> RayProcess:
        options = actor_options(self._config, stage)
        if stage is not StageName.ENCODER:
            return self._create_llm(stage, options)
        # Imported here: the services bring torch along, which takes seconds.
        from router.control.node_encoder import NodeEncoderActor

        return RayProcess(stage, ray.remote(NodeEncoderActor).options(**options).remote(self._config, self._host))

    def _create_rank(self, stage: StageName, rank: int, placement: PlacementGroup) -> RayProcess:
        options = actor_options(self._config, stage)
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement, rank)
        if rank == 0:
            return self._create_llm(stage, options)
        from router.control.node_follower import NodeFollowerActor

        create = ray.remote(NodeFollowerActor).options(**options).remote
        return RayProcess(stage, create(self._config, str(stage), rank, self._host))

    def _create_llm(self, stage: StageName, options: dict[str, Any]) -> RayProcess:
        from router.control.node_llm import NodeLlmActor

        create = ray.remote(NodeLlmActor).options(**options).remote
        return RayProcess(stage, create(self._config, str(stage), self._host))
