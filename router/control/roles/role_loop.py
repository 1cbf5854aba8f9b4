"""RoleLoop: has the role policy say who should move, and the controller move it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from router.control.membership import StageName
from router.control.roles import role_policy
from router.control.roles.role_context import Move, RoleContext, RoleState, StageLoad
from router.control.scaling.context import ActorCounts, Bounds, Flow, Holding, Reason
from router.control.scaling.metrics import ScalingMetrics
from triptych.config import DeploymentConfig, Mode
from triptych.errors import TriptychError

logger = logging.getLogger(__name__)

_NO_LIMIT = 1 << 10


class Moving(Protocol):
    """What the loop needs of the controller."""

    def counts(self, stage: StageName) -> ActorCounts:
        """The actors of a stage, by what they are doing."""
        ...

    def is_pinned(self, stage: StageName) -> bool:
        """Whether an operator said how many there are to be."""
        ...

    async def move(
        self, from_stage: StageName, to_stage: StageName, actor_id: str = "", *, is_automatic: bool = False
    ) -> str:
        """Has an actor of one stage take work of the other."""
        ...


class RoleLoop:
    """`step` after every look at the load; one move at a time. Lives on the controller's event loop."""

    def __init__(
        self,
        config: DeploymentConfig,
        controller: Moving,
        metrics: ScalingMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scaling = config.scaling
        self._settings = settings = config.scaling.roles
        self._policy = role_policy(settings.policy)
        self._controller = controller
        self._metrics = metrics
        self._clock = clock
        self._state = RoleState()
        self._move_s = {
            Move(one, other): settings.turn_s if StageName.ENCODER in (one, other) else settings.role_s
            for one in StageName
            for other in StageName
            if one is not other and (config.control.keep_both_halves or StageName.ENCODER not in (one, other))
        }
        self.is_active = settings.policy != "fixed" and config.mode is not Mode.COLOCATED
        self._moving: asyncio.Task[None] | None = None

    def load(self, stage: StageName, flows: Sequence[Flow], holdings: Sequence[Holding], num_actors: int) -> StageLoad:
        """A stage as the policy sees it; the scarcest resource decides."""
        busy = self._scaling.target_utilization
        steady = [flow.arriving_per_s / flow.work_per_s for flow in flows]
        steady += [holding.held / holding.capacity for holding in holdings]
        return StageLoad(
            num_actors,
            steady=max(steady, default=0.0) / busy,
            waiting_s=max((flow.waiting / flow.work_per_s for flow in flows), default=0.0) / busy,
            bounds=self._bounds(stage),
        )

    def step(self, stages: Mapping[StageName, StageLoad]) -> None:
        """Begins a move where the policy says so. Nothing while one is under way, or actors of a stage start."""
        if not self.is_active or (self._moving is not None and not self._moving.done()):
            return
        context = RoleContext(
            now_s=self._clock(),
            stages={stage: load for stage, load in stages.items() if load.num_actors},
            move_s={move: seconds for move, seconds in self._move_s.items() if self._is_free(move)},
            smoothing_s=self._scaling.smoothing_s,
            settings=self._settings,
            state=self._state,
        )
        moves, self._state = self._policy(context)
        if moves:
            self._moving = asyncio.get_running_loop().create_task(self._make(moves))

    async def stop(self) -> None:
        """Idempotent. A move under way is ended; the controller knows where the actor is."""
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)

    async def _make(self, moves: Sequence[Move]) -> None:
        for move in moves:
            from_stage, to_stage = move.from_stage, move.to_stage
            before = [self._controller.counts(stage).wanted for stage in (from_stage, to_stage)]
            begun_s = self._clock()
            try:
                actor_id = await self._controller.move(from_stage, to_stage, is_automatic=True)
            except TriptychError as error:
                logger.warning("no actor moved from stage %s to %s: %s", from_stage, to_stage, error)
                return
            self._move_s[move] = self._clock() - begun_s
            logger.info("%s moved from stage %s to %s in %.3f s", actor_id, from_stage, to_stage, self._move_s[move])
            self._metrics.note_decision(from_stage, before[0], before[0] - 1, Reason.MIX)
            self._metrics.note_decision(to_stage, before[1], before[1] + 1, Reason.MIX)

    def _is_free(self, move: Move) -> bool:
        """Neither stage was set by hand, nor is waiting for actors."""
        return not any(
            self._controller.is_pinned(stage) or self._controller.counts(stage).starting
            for stage in (move.from_stage, move.to_stage)
        )

    def _bounds(self, stage: StageName) -> Bounds:
        section = getattr(self._scaling, stage)
        low = 1 if section.min_actors is None else section.min_actors
        return Bounds(low, _NO_LIMIT if section.max_actors is None else section.max_actors)
