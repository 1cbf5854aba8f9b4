"""ScalingLoop: has the policy say how many actors each stage should have, and the controller see to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from router.control.membership import Member, Membership, StageName
from router.control.roles.role_context import StageLoad
from router.control.roles.role_loop import RoleLoop
from router.control.scaling import scaling_policy
from router.control.scaling.bounds import scaled_stages
from router.control.scaling.capacity import CapacityMeter
from router.control.scaling.context import ActorCounts, Flow, Holding, ScalingContext, ScalingState
from router.control.scaling.demand import Demand, Work
from router.control.scaling.metrics import ScalingMetrics
from triptych.config import DeploymentConfig
from triptych.v1 import admin_pb2

logger = logging.getLogger(__name__)

# Stages whose actors hold answers while they run, and from which share of the streams on they count as full.
_HOLDING = (StageName.DECODE, StageName.PREFILL_DECODE)
_FULL = 0.9

AskActor = Callable[[Member], Awaitable[admin_pb2.ActorInfo | None]]


class Scaled(Protocol):
    """What the loop needs of the controller."""

    def counts(self, stage: StageName) -> ActorCounts:
        """The actors of a stage, by what they are doing."""
        ...

    def start_s(self, stage: StageName) -> float | None:
        """How long the last actors of a stage took to start; None before the first."""
        ...

    def is_pinned(self, stage: StageName) -> bool:
        """Whether an operator said how many there are to be."""
        ...

    def set_wanted(self, stage: StageName, num_actors: int) -> None:
        """As `scale`, without waiting and without the check that the policy's bounds have replaced."""
        ...

    async def move(
        self, from_stage: StageName, to_stage: StageName, actor_id: str = "", *, is_automatic: bool = False
    ) -> str:
        """Has an actor of one stage take work of the other."""
        ...


class Loads(Protocol):
    """What the loop needs of the dispatcher."""

    @property
    def demand(self) -> Demand: ...

    def unplaced(self) -> Work:
        """Work of requests that no actor has yet: they wait for a turn, or for a stage without actors."""
        ...

    def work_on(self, actor_id: str) -> Work:
        """Work that an actor was given and has not finished."""
        ...


class ScalingLoop:
    """Lives on the controller's event loop. Changes nothing where a stage's bounds are equal."""

    def __init__(
        self,
        config: DeploymentConfig,
        controller: Scaled,
        loads: Loads,
        membership: Membership,
        ask: AskActor,
        metrics: ScalingMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = config.scaling
        self._policy = scaling_policy(config.scaling.policy)
        self._bounds = scaled_stages(config)
        self._controller = controller
        self._loads = loads
        self._membership = membership
        self._ask = ask
        self._metrics = metrics
        self._clock = clock
        # Requests are spread evenly over the router processes, and this one sees its own.
        self._num_routers = config.router.processes
        self._states = {stage: ScalingState() for stage in StageName}
        self._capacities = {stage: CapacityMeter(getattr(config.scaling, stage).work_per_s) for stage in StageName}
        self._roles = RoleLoop(config, controller, metrics, clock)
        self._seen = Work()
        self._seen_s = clock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look every scaling.interval_s."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._roles.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.interval_s)
            try:
                await self.step()
            except Exception:
                # As in the controller: a bug here must not end scaling.
                logger.exception("scaling")

    async def step(self) -> None:
        """One look at everything, and what follows from it."""
        if self._bounds or self._roles.is_active:
            members = self._membership.all_members()
            infos = {info.actor_id: info for info in await asyncio.gather(*map(self._ask, members)) if info is not None}
            arriving = self._arriving_per_s()
            self._measure(members, infos)
            for stage in self._bounds:
                self._decide(stage, arriving, infos)
            if self._roles.is_active:
                self._roles.step({stage: self._stage_load(stage, arriving, infos) for stage in StageName})
        for stage in StageName:
            self._metrics.note_counts(stage, self._controller.counts(stage))

    def _stage_load(
        self, stage: StageName, arriving: tuple[float, float], infos: dict[str, admin_pb2.ActorInfo]
    ) -> StageLoad:
        """For the role policy. Requests without a place wait for encoders or prefill, unless the running answers fill
        the stages that hold them: then they are more of those."""
        members = [member for member in self._membership.all_members() if member.stage is stage]
        holdings, flows = self._holdings(stage, members, infos), self._flows(stage, members, arriving, Work())
        unplaced = self._loads.unplaced()
        if (held := self._held_tokens_if_full(infos)) is not None:
            growth = 1.0 + self._num_routers * unplaced.num_prompt_tokens / held
            holdings = tuple(Holding(growth * holding.held, holding.capacity) for holding in holdings)
        else:
            flows = self._flows(stage, members, arriving, unplaced)
        return self._roles.load(stage, flows, holdings, self._controller.counts(stage).ready)

    def _held_tokens_if_full(self, infos: dict[str, admin_pb2.ActorInfo]) -> int | None:
        """KV tokens of all running answers, when the stages that decode have no room for more."""
        members = [member for member in self._membership.all_members() if member.stage in _HOLDING]
        is_full = members and all(
            holding.held >= _FULL * holding.capacity
            for member in members
            for holding in self._holdings(member.stage, [member], infos)[:1]
        )
        told = [infos[member.actor_id].language for member in members if member.actor_id in infos]
        return max(1, sum(language.held_pages * language.page_size for language in told)) if is_full else None

    def _decide(self, stage: StageName, arriving: tuple[float, float], infos: dict[str, admin_pb2.ActorInfo]) -> None:
        context = self._context(stage, arriving, infos)
        target, state = self._policy(context)
        before = context.actors.wanted
        self._states[stage] = state
        if target == before or self._controller.is_pinned(stage):
            return
        logger.info(
            "stage %s: %d actors wanted by %s, %d before, because of %s",
            stage,
            target,
            self._settings.policy,
            before,
            state.reason,
        )
        self._metrics.note_decision(stage, before, target, state.reason)
        self._controller.set_wanted(stage, target)

    def _context(
        self, stage: StageName, arriving: tuple[float, float], infos: dict[str, admin_pb2.ActorInfo]
    ) -> ScalingContext:
        now_s = self._clock()
        members = [member for member in self._membership.all_members() if member.stage is stage]
        return ScalingContext(
            now_s=now_s,
            actors=self._controller.counts(stage),
            bounds=self._bounds[stage],
            start_s=self._controller.start_s(stage) or self._settings.start_s,
            settings=self._settings,
            flows=self._flows(stage, members, arriving, self._loads.unplaced()),
            holdings=self._holdings(stage, members, infos),
            attainment=self._loads.demand.attainment.of(stage, now_s),
            state=self._states[stage],
        )

    def _flows(
        self, stage: StageName, members: list[Member], arriving: tuple[float, float], unplaced: Work
    ) -> tuple[Flow, ...]:
        if stage is StageName.DECODE:
            return ()
        given = [self._loads.work_on(member.actor_id) for member in members]
        work_per_s = self._capacities[stage].work_per_s
        if stage is StageName.ENCODER:
            waiting = unplaced.num_patches + sum(work.num_patches for work in given)
            return (Flow(arriving[0], self._num_routers * waiting, work_per_s),)
        part = self._prompt_part(stage)
        waiting = round(part * unplaced.num_prompt_tokens) + sum(work.num_prompt_tokens for work in given)
        return (Flow(part * arriving[1], self._num_routers * waiting, work_per_s),)

    def _holdings(
        self, stage: StageName, members: list[Member], infos: dict[str, admin_pb2.ActorInfo]
    ) -> tuple[Holding, ...]:
        """KV tokens and streams, as the actors count them: whichever router they are of."""
        if stage not in _HOLDING:
            return ()
        told = [infos[member.actor_id].language for member in members if member.actor_id in infos]
        streams = Holding(
            sum(language.running_requests for language in told), getattr(self._settings, stage).max_streams
        )
        sizes = [member.num_kv_tokens for member in members if member.num_kv_tokens]
        if not sizes:
            return (streams,)
        held = sum(language.held_pages * language.page_size for language in told)
        return streams, Holding(held, sum(sizes) / len(sizes))

    def _prompt_part(self, stage: StageName) -> float:
        """Which part of the prompts a stage gets where there are prefill and prefill_decode actors."""
        counts = {name: self._controller.counts(name).wanted for name in (StageName.PREFILL, StageName.PREFILL_DECODE)}
        return counts[stage] / total if (total := sum(counts.values())) else 1.0

    def _arriving_per_s(self) -> tuple[float, float]:
        """Patches and prompt tokens a second since the last look."""
        now_s, arrived = self._clock(), self._loads.demand.arrived
        elapsed_s = max(now_s - self._seen_s, 1e-3)
        patches = arrived.num_patches - self._seen.num_patches
        tokens = arrived.num_prompt_tokens - self._seen.num_prompt_tokens
        self._seen, self._seen_s = arrived, now_s
        return self._num_routers * patches / elapsed_s, self._num_routers * tokens / elapsed_s

    def _measure(self, members: list[Member], infos: dict[str, admin_pb2.ActorInfo]) -> None:
        now_s = self._clock()
        for member in members:
            info, capacity = infos.get(member.actor_id), self._capacities[member.stage]
            if info is None:
                continue
            if member.stage is StageName.ENCODER:
                capacity.note(member.actor_id, now_s, info.encoder.encoded_patches, info.encoder.pending_patches)
            else:
                pending = self._num_routers * self._loads.work_on(member.actor_id).num_prompt_tokens
                capacity.note(member.actor_id, now_s, info.language.prompt_tokens, pending)
        present = {member.actor_id for member in members}
        for capacity in self._capacities.values():
            capacity.retain(present)
