"""Remains: what an earlier controller left in a Ray namespace."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from router.control.actor_name import ActorName
from router.control.ray_process import RayProcess
from triptych.errors import Unavailable

logger = logging.getLogger(__name__)

_REMOVED = "REMOVED"


class Remains:
    """A look at the namespace at one moment."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._names = [
            name
            for entry in ray.util.list_named_actors(all_namespaces=True)
            if entry["namespace"] == namespace and (name := ActorName.parse(entry["name"])) is not None
        ]
        self._groups = {
            str(row["name"]).removeprefix(f"{namespace}/"): _group(row)
            for row in placement_group_table().values()
            if str(row["name"]).startswith(f"{namespace}/") and row["state"] != _REMOVED
        }

    def actors(self) -> dict[ActorName, list[ActorName]]:
        """By the name of rank 0: the processes that there are of each actor."""
        found: dict[ActorName, list[ActorName]] = defaultdict(list)
        for name in self._names:
            found[name.of_rank(0)].append(name)
        return found

    def process(self, name: ActorName) -> RayProcess:
        """Raises Unavailable when it is gone by now."""
        try:
            return RayProcess(name.stage, ray.get_actor(str(name), namespace=self._namespace))
        except ValueError:
            raise Unavailable(f"actor {name} is gone") from None

    def placement_group(self, leader: ActorName) -> PlacementGroup | None:
        """That of an actor of several processes."""
        return self._groups.get(leader.actor)

    def end(self, leader: ActorName, ranks: list[ActorName]) -> None:
        """Kills what is left of an actor, and gives back its place."""
        logger.warning("of actor %s only ranks %s are left: ending them", leader.actor, [name.rank for name in ranks])
        for name in ranks:
            try:
                self.process(name).kill()
            except Unavailable as error:
                logger.debug("%s", error)
        if (placement := self._groups.pop(leader.actor, None)) is not None:
            remove_placement_group(placement)

    def end_empty_groups(self) -> None:
        """Gives back places in which no process was begun."""
        used = {name.actor for name in self._names}
        for actor, placement in self._groups.items():
            if actor not in used:
                remove_placement_group(placement)


def _group(row: dict[str, Any]) -> PlacementGroup:
    return PlacementGroup(PlacementGroupID.from_hex(row["placement_group_id"]))
