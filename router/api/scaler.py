"""What the admin service needs of whoever creates and removes actors."""

from __future__ import annotations

from typing import Protocol

from router.control.membership import StageName
from triptych.v1 import admin_pb2


class Scaler(Protocol):
    """Sets how many actors a stage should have, and says what there is; the controller implements it."""

    def topology(self) -> list[admin_pb2.StageStatus]:
        """Every stage of the deployment with its wanted count and its actors, whatever their state."""
        ...

    async def scale(self, stage: StageName, num_actors: int, *, wait: bool, timeout_s: float) -> admin_pb2.StageStatus:
        """Takes the wish; with `wait` returns only when the stage has that many ready actors and no other.

        Raises InvalidRequest for a stage that the deployment's mode does not have, and DeadlineExceeded when `wait`
        takes longer than `timeout_s`.
        """
        ...

    async def move(
        self, from_stage: StageName, to_stage: StageName, actor_id: str = "", *, is_automatic: bool = False
    ) -> str:
        """Has a ready actor of `from_stage`, the least busy one or a named one, take work of `to_stage`; its id there.

        Raises InvalidRequest when no request could be answered then or there is no such actor, and what keeps the
        actor from it.
        """
        ...

    def unpin(self, stage: StageName) -> None:
        """Gives the stage back to the scaling policy, which leaves it alone from a `scale` on."""
        ...
