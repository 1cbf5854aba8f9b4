"""SupervisedActor: one actor process from launch to end, and the tasks that look after it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from router.control.launcher import ActorProcess, Health
from router.control.membership import Member, StageName
from router.control.plan import ActorView, Phase
from triptych.config import ControlSection
from triptych.errors import FailedPrecondition, InternalError, InvalidRequest, TriptychError, Unavailable
from triptych.v1 import admin_pb2

logger = logging.getLogger(__name__)

# An actor gets that long to end by itself after it was told to, before it is ended by force.
STOP_GRACE_S = 5.0
# How often an actor is asked: as often within the timeout, and at least as often as here.
CHECKS_PER_HEALTH_TIMEOUT = 5
CHECK_INTERVAL_S = 1.0

_STATES = {
    Phase.STARTING: admin_pb2.ACTOR_STATE_STARTING,
    Phase.READY: admin_pb2.ACTOR_STATE_READY,
    # Routers place nothing on it until it is in its new stage; what they have there goes on.
    Phase.MOVING: admin_pb2.ACTOR_STATE_DRAINING,
    Phase.DRAINING: admin_pb2.ACTOR_STATE_DRAINING,
    Phase.LOST: admin_pb2.ACTOR_STATE_LOST,
    Phase.ENDED: admin_pb2.ACTOR_STATE_LOST,
}


class SupervisedActor:
    """Never blocks the controller: each of its operations is a task, which calls `on_change()` when something is new.

    `on_started(error)` is called once, when the start succeeded (None) or failed. `lacking()` says what the cluster
    lacks for one more actor.
    """

    def __init__(
        self,
        number: int,
        stage: StageName,
        process: ActorProcess,
        control: ControlSection,
        clock: Callable[[], float],
        on_started: Callable[[TriptychError | None], None],
        on_change: Callable[[], None],
        lacking: Callable[[], str] = str,
    ) -> None:
        self.number = number
        self.stage = stage
        self.phase = Phase.STARTING
        self.is_suspect = False  # Somebody could not reach it; True until it was asked.
        self._process = process
        self._control = control
        self._clock = clock
        self._on_started = on_started
        self._on_change = on_change
        self._lacking = lacking
        self._is_placed = False
        self._member: Member | None = None
        self._answered_at_s = self._check_due_s = clock()
        self._check: asyncio.Task[None] | None = None
        self._is_ending = False
        self._life: asyncio.Task[None] = self._spawn(self._start())

    @property
    def actor_id(self) -> str:
        """The incarnation id; empty until the actor is ready."""
        return self._member.actor_id if self._member is not None else ""

    @property
    def waits_for_place(self) -> bool:
        """Whether the cluster has not begun its process yet."""
        return self.phase is Phase.STARTING and not self._is_placed

    def member(self) -> Member | None:
        """What the dispatcher may know of it; None while it starts and after it was lost."""
        if self._member is None or self.phase not in (Phase.READY, Phase.MOVING, Phase.DRAINING):
            return None
        return replace(self._member, state=_STATES[self.phase])

    def view(self, load: int) -> ActorView:
        return ActorView(self.number, self.stage, self.phase, load)

    def status(self) -> admin_pb2.ActorStatus:
        endpoint = self._member.endpoint if self._member is not None else ""
        return admin_pb2.ActorStatus(actor_id=self.actor_id, endpoint=endpoint, state=_STATES[self.phase])

    def suspect(self) -> None:
        """Have it asked at once: somebody could not reach it."""
        self.is_suspect = True
        self._check_due_s = self._clock()
        self.look_after()

    def look_after(self) -> None:
        """Begins a check when one is due."""
        if self.phase is Phase.READY and self._check is None and self._clock() >= self._check_due_s:
            self._check = self._spawn(self._ask())

    def begin_move(self, stage: StageName) -> None:
        """Counts as one of `stage` from now on, and takes no new work until `finish_move` is done."""
        self.stage = stage
        self._set_phase(Phase.MOVING)

    async def finish_move(self) -> None:
        """Returns when it takes work of its new stage; raises the reason when it stays in the one before."""
        assert self._member is not None
        try:
            async with asyncio.timeout(self._control.start_timeout_s):
                info = await self._process.move(self.stage, self._control.drain_timeout_s)
            self._member = Member.from_info(info)
            logger.info("%s is ready in stage %s at %s", self.actor_id, self.stage, self._member.endpoint)
        except (FailedPrecondition, InvalidRequest):
            raise
        except (TimeoutError, TriptychError) as error:
            # Nobody knows what it is now.
            self._set_phase(Phase.LOST)
            raise Unavailable(
                f"{self.actor_id} was lost on its way to stage {self.stage}: {error or 'no answer'}"
            ) from None
        finally:
            self.stage = self._member.stage
            if self.phase is Phase.MOVING:
                self._answered_at_s = self._check_due_s = self._clock()
                self._set_phase(Phase.READY)

    def drain(self) -> None:
        """Take it away: finish its work, then end. One that still starts ends at once."""
        was_starting = self.phase is Phase.STARTING
        if was_starting:
            self._life.cancel()
        self._set_phase(Phase.DRAINING)
        self._end_after(self._process.stop(0.0) if was_starting else self._drain_and_stop())

    def discard(self) -> None:
        """End what may be left of a lost actor."""
        if not self._is_ending:
            self._end_after(self._process.stop(0.0))

    async def stop(self, grace_s: float) -> None:
        """End it now, whatever it does: politely for `grace_s`, but at once when it has not even started."""
        if self.phase is Phase.STARTING:
            grace_s = 0.0
        tasks = [task for task in (self._life, self._check) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._process.stop(grace_s)
        self.phase = Phase.ENDED

    async def _start(self) -> None:
        try:
            await self._place()
            info = await self._begin()
            self._member = Member.from_info(info)
        except TriptychError as error:
            await self._fail(error)
        except Exception as error:
            logger.exception("starting an actor of stage %s", self.stage)
            await self._fail(InternalError(f"{type(error).__name__}: {error}"))
        else:
            self._on_started(None)
            self._answered_at_s = self._check_due_s = self._clock()
            # One that an earlier controller made may have another role by now, or be on its way out.
            self.stage = self._member.stage
            if info.state == admin_pb2.ACTOR_STATE_DRAINING:
                self.phase = Phase.READY
                self.drain()
                return
            logger.info("%s is ready at %s", self.actor_id, self._member.endpoint)
            self._set_phase(Phase.READY)

    async def _place(self) -> None:
        timeout_s = self._control.placement_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.place()
        except TimeoutError:
            missing = self._lacking()
            raise Unavailable(
                f"no place within control.placement_timeout_s={timeout_s:g}"
                + (f": the cluster lacks {missing}" if missing else ""),
                field="control.placement_timeout_s",
            ) from None
        self._is_placed = True

    async def _begin(self) -> admin_pb2.ActorInfo:
        timeout_s = self._control.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._process.start()
        except TimeoutError:
            raise Unavailable(
                f"not ready within control.start_timeout_s={timeout_s:g}", field="control.start_timeout_s"
            ) from None

    async def _fail(self, error: TriptychError) -> None:
        logger.warning("an actor of stage %s did not start: %s", self.stage, error)
        self._on_started(error)
        await self._process.stop(0.0)
        self._set_phase(Phase.ENDED)

    async def _ask(self) -> None:
        timeout_s = self._control.health_timeout_s
        try:
            health = await self._process.check(timeout_s)
        finally:
            self._check = None
            self._check_due_s = self._clock() + min(CHECK_INTERVAL_S, timeout_s / CHECKS_PER_HEALTH_TIMEOUT)
        if self.phase is not Phase.READY:
            return
        if health is Health.SERVING:
            self._answered_at_s = self._clock()
            if self.is_suspect:
                self.is_suspect = False
                self._on_change()
            return
        silent_s = self._clock() - self._answered_at_s
        if health is Health.GONE:
            reason = "its process died"
        elif silent_s >= timeout_s:
            reason = f"no answer for {silent_s:.1f} s (control.health_timeout_s={timeout_s:g})"
        else:
            return
        logger.warning("%s is lost and will be replaced: %s", self.actor_id, reason)
        self._set_phase(Phase.LOST)

    async def _drain_and_stop(self) -> None:
        timeout_s = self._control.drain_timeout_s
        try:
            # The actor holds itself to the deadline; the margin is for one that does not answer at all.
            async with asyncio.timeout(timeout_s + STOP_GRACE_S):
                is_done = await self._process.drain(timeout_s)
        except (TimeoutError, TriptychError) as error:
            logger.warning("%s did not drain: %s", self.actor_id, error or "no answer")
            is_done = False
        if not is_done:
            logger.warning("%s had work left after control.drain_timeout_s=%g", self.actor_id, timeout_s)
        await self._process.stop(STOP_GRACE_S if is_done else 0.0)

    def _end_after(self, ending: Coroutine[Any, Any, None]) -> None:
        async def end() -> None:
            try:
                await ending
            finally:
                self._set_phase(Phase.ENDED)

        self._is_ending = True
        self._life = self._spawn(end())

    def _set_phase(self, phase: Phase) -> None:
        self.phase = phase
        self._on_change()

    @staticmethod
    def _spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)
