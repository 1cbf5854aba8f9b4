"""RayActorGroup: the processes of one LLM actor that several GPUs share, in one placement group, as an ActorProcess."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray.util.placement_group import PlacementGroup, remove_placement_group

from router.control.actor_calls import is_serving, set_role
from router.control.launcher import Health
from router.control.membership import StageName
from router.control.ray_process import RayProcess
from triptych.errors import TriptychError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2

logger = logging.getLogger(__name__)

# When one process of a group fails to start, the others fail for want of it; so long they get to say what it was.
_CAUSE_WAIT_S = 1.0

Reserve = Callable[[], PlacementGroup]
"""Room for all ranks, or the room that they have already."""
CreateRank = Callable[[int, PlacementGroup], RayProcess]
"""The process of a rank, in its bundle of the placement group."""


class RayActorGroup:
    """The leader, rank 0, serves; the followers compute with it. They start, live and end as a whole."""

    def __init__(self, reserve: Reserve, create: CreateRank, size: int, channels: ChannelPool) -> None:
        self._reserve = reserve
        self._create = create
        self._size = size
        self._channels = channels
        self._placement: PlacementGroup | None = None
        self._processes: list[RayProcess] = []
        self._endpoint = ""

    async def place(self) -> None:
        """Waits for room for all ranks."""
        self._placement = placement = self._reserve()
        await placement.ready()
        self._processes = [self._create(rank, placement) for rank in range(self._size)]

    async def start(self) -> admin_pb2.ActorInfo:
        """Waits until all ranks serve together. Raises what kept one of them from it."""
        leader, *followers = self._processes
        rendezvous = await leader.call("rendezvous")
        starts = [leader.call("start"), *(follower.call("start", rendezvous) for follower in followers)]
        answer, *_ = await _all_or_cause(starts)
        info = admin_pb2.ActorInfo.FromString(answer)
        self._endpoint = info.endpoint
        return info

    async def check(self, timeout_s: float) -> Health:
        """As of one actor; but when the leader does not serve, one dead process is enough to be gone for certain."""
        if not self._processes:
            return Health.GONE
        if await is_serving(self._channels, self._endpoint, timeout_s):
            return Health.SERVING
        are_dead = await asyncio.gather(*(process.is_dead() for process in self._processes))
        return Health.GONE if any(are_dead) else Health.SILENT

    async def drain(self, timeout_s: float) -> bool:
        """Asks the leader to finish its work; False when the deadline came first."""
        return bool(await self._processes[0].call("drain", timeout_s))

    async def move(self, stage: StageName, drain_s: float) -> admin_pb2.ActorInfo:
        """Asks the leader to take another role; the followers compute what it says in any."""
        return await set_role(self._channels, self._endpoint, stage, drain_s)

    async def stop(self, grace_s: float) -> None:
        """The leader's own `stop` ends its followers in order; then all processes are ended, and their place is given
        back, whatever became of them."""
        processes, self._processes = self._processes, []
        placement, self._placement = self._placement, None
        try:
            if processes:
                await processes[0].stop(grace_s)
        finally:
            for process in processes:
                process.kill()
            if placement is not None:
                _remove(placement)
        if self._endpoint:
            await self._channels.drop(self._endpoint)


async def _all_or_cause(starts: Sequence[Awaitable[Any]]) -> list[Any]:
    """The answers of all; or the error that says most: that others are gone is what those say that wait for them."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            await asyncio.wait(pending, timeout=_CAUSE_WAIT_S)
        errors = [error for task in tasks if task.done() and (error := task.exception()) is not None]
        if errors:
            raise min(errors, key=_vagueness)
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


def _vagueness(error: BaseException) -> int:
    if not isinstance(error, TriptychError):
        return 2
    return 1 if isinstance(error, Unavailable) else 0


def _remove(placement: PlacementGroup) -> None:
    try:
        remove_placement_group(placement)
    except Exception as error:
        # The cluster went first, and the group with it.
        logger.debug("remove_placement_group: %s", error)
