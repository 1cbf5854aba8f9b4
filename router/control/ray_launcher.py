"""RayLauncher: makes Ray actors of the plain classes EncoderActor, LlmActor and FollowerActor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from router.control.actor_name import ActorName
from router.control.actor_options import actor_options, actor_section, num_ranks, placement_strategy, rank_bundle
from router.control.free_place import lacking_text
from router.control.launcher import ActorProcess
from router.control.membership import StageName
from router.control.ray_actor import RayActor
from router.control.ray_group import RayActorGroup
from router.control.ray_process import RayProcess
from router.control.ray_remains import Remains
from triptych.config import DeploymentConfig
from triptych.rpc.channels import ChannelPool

logger = logging.getLogger(__name__)


class RayLauncher:
    """Creates actors in the cluster that this process is connected to; see `cluster.py`.

    `host` is the address they listen on and are reached at; empty: that of the node each one comes to run on.
    With `are_detached` they live on when this process ends, and a launcher of the same namespace finds them.
    """

    def __init__(
        self, config: DeploymentConfig, channels: ChannelPool, host: str, *, are_detached: bool = False
    ) -> None:
        self._config = config
        self._channels = channels
        self._host = host
        self._namespace = config.control.namespace if are_detached else ""

    def launch(self, stage: StageName) -> ActorProcess:
        """An actor of `stage`, of one process or of several; Ray is asked for them by `place`."""
        name, size = ActorName.new(stage), num_ranks(self._config, stage)
        if size == 1:
            return self._actor(partial(self._create, name))
        return RayActorGroup(partial(self._reserve, name), partial(self._create_rank, name), size, self._channels)

    def running(self) -> list[tuple[StageName, ActorProcess]]:
        """Actors that a launcher before this one made in the namespace. Ends what is left of incomplete ones."""
        if not self._namespace:
            return []
        remains = Remains(self._namespace)
        actors: list[tuple[StageName, ActorProcess]] = []
        for leader, ranks in remains.actors().items():
            size = num_ranks(self._config, leader.stage)
            placement = remains.placement_group(leader)
            if len(ranks) < size or (size > 1 and placement is None):
                remains.end(leader, ranks)
            elif size == 1:
                actors.append((leader.stage, self._actor(partial(remains.process, leader))))
            else:
                reserve, create = partial(_given, placement), partial(_found, remains, leader)
                actors.append((leader.stage, RayActorGroup(reserve, create, size, self._channels)))
        remains.end_empty_groups()
        return actors

    def lacking(self, stage: StageName) -> str:
        """Compares what the nodes have with what an actor holds."""
        try:
            free, nodes = ray.available_resources(), [node for node in ray.nodes() if node["Alive"]]
        except ray.exceptions.RayError as error:
            logger.debug("available_resources: %s", error)
            return ""
        section, bundle = actor_section(self._config, stage), rank_bundle(self._config, stage)
        return lacking_text(bundle, num_ranks(self._config, stage), section.labels, nodes, free)

    def _actor(self, create: Callable[[], RayProcess]) -> RayActor:
        return RayActor(create, self._channels, has_both_halves=self._config.control.keep_both_halves)

    def _create(self, name: ActorName) -> RayProcess:
        options = self._options(name)
        if self._config.control.keep_both_halves:
            from router.control.node_turning import NodeTurningActor

            create = ray.remote(NodeTurningActor).options(**options).remote
            return RayProcess(name.stage, create(self._config, str(name.stage), self._host))
        if name.stage is not StageName.ENCODER:
            return self._create_llm(name.stage, options)
        # Imported here: the services bring torch along, which takes seconds.
        from router.control.node_encoder import NodeEncoderActor

        return RayProcess(name.stage, ray.remote(NodeEncoderActor).options(**options).remote(self._config, self._host))

    def _reserve(self, name: ActorName) -> PlacementGroup:
        config, size, labels = self._config, num_ranks(self._config, name.stage), self._labels(name)
        return placement_group(
            [rank_bundle(config, name.stage)] * size,
            placement_strategy(config, name.stage),
            name=f"{self._namespace}/{name.actor}",
            lifetime="detached" if self._namespace else None,
            bundle_label_selector=[labels] * size if labels else None,
        )

    def _create_rank(self, name: ActorName, rank: int, placement: PlacementGroup) -> RayProcess:
        options = self._options(name.of_rank(rank))
        # The bundle has both.
        options.pop("accelerator_type", None)
        options.pop("label_selector", None)
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement, rank)
        if rank == 0:
            return self._create_llm(name.stage, options)
        from router.control.node_follower import NodeFollowerActor

        create = ray.remote(NodeFollowerActor).options(**options).remote
        return RayProcess(name.stage, create(self._config, str(name.stage), rank, self._host))

    def _create_llm(self, stage: StageName, options: dict[str, Any]) -> RayProcess:
        from router.control.node_llm import NodeLlmActor

        create = ray.remote(NodeLlmActor).options(**options).remote
        return RayProcess(stage, create(self._config, str(stage), self._host))

    def _options(self, name: ActorName) -> dict[str, Any]:
        options = actor_options(self._config, name.stage)
        if self._namespace:
            options |= {"name": str(name), "namespace": self._namespace, "lifetime": "detached"}
        return options

    def _labels(self, name: ActorName) -> dict[str, str]:
        return dict(actor_section(self._config, name.stage).labels)


def _given(placement: PlacementGroup) -> PlacementGroup:
    return placement


def _found(remains: Remains, leader: ActorName, rank: int, placement: PlacementGroup) -> RayProcess:
    return remains.process(leader.of_rank(rank))
