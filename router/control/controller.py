"""Controller: keeps each stage at its wanted number of actors, and tells the dispatcher who can work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from router.control.backoff import Backoff
from router.control.launcher import ActorProcess, Launcher
from router.control.membership import Membership, StageName
from router.control.plan import Action, Discard, Drain, Launch, Phase, check_move, check_scale, plan, wanted_actors
from router.control.scaling.context import ActorCounts
from router.control.supervised_actor import SupervisedActor
from router.control.wanted_store import Wanted, WantedStore
from triptych.config import DeploymentConfig
from triptych.errors import ConfigurationError, DeadlineExceeded, InvalidRequest, ModelError, TriptychError
from triptych.v1 import admin_pb2

logger = logging.getLogger(__name__)

# `start`, and `scale` with wait, give up when a stage failed that often in a row. The controller itself never gives up.
START_ATTEMPTS = 3
# Actors found running get that long to say what they are before anything is published.
ADOPTION_S = 5.0
# `scale` gives up that much before its caller does: the answer that says why must still arrive.
ANSWER_MARGIN_S = 0.5

Progress = Callable[[Sequence[admin_pb2.StageStatus]], None]


class Controller:
    """Creates, watches, replaces and drains actors. Lives on one event loop; the only writer of `membership`.

    `load_of(actor_id)` says how busy an actor is, so that the idle ones are taken away first. `store` keeps what is
    wanted beyond this controller's end.
    """

    def __init__(
        self,
        config: DeploymentConfig,
        launcher: Launcher,
        membership: Membership,
        *,
        load_of: Callable[[str], int] = lambda actor_id: 0,
        clock: Callable[[], float] = time.monotonic,
        store: WantedStore | None = None,
    ) -> None:
        self._config = config
        self._launcher = launcher
        self._membership = membership
        self._load_of = load_of
        self._clock = clock
        self._store = store if store is not None else WantedStore()
        known = self._store.load()
        self._wanted = dict(known.actors) if known is not None else wanted_actors(config)
        self._pinned: set[StageName] = set(known.pinned) if known is not None else set()
        self._start_s: dict[StageName, float] = {}
        self._actors: dict[int, SupervisedActor] = {}
        self._moving: set[asyncio.Task[str]] = set()
        self._launched = 0
        self._backoff = Backoff(clock)
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._progress: Progress | None = None
        self._on_published: Callable[[], None] = lambda: None

    async def start(self, progress: Progress | None = None) -> None:
        """Returns when every stage has its actors. Raises the reason when a stage can't start; then call `stop`."""
        self._progress = progress
        await self.begin()
        for stage in StageName:
            await self._wait_until_reached(stage)
        self._progress = None

    async def begin(self) -> None:
        """Takes over what an earlier controller left, and reconciles from then on."""
        self._membership.on_lost(self._on_lost)
        await self._adopt()
        self._loop_task = asyncio.get_running_loop().create_task(self._reconcile_forever())

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ends every actor: politely for `grace_s`, then by force. Work that still runs is lost. Idempotent."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        for moving in self._moving:
            moving.cancel()
        await asyncio.gather(*self._moving, return_exceptions=True)
        self._membership.set(())
        await asyncio.gather(*(actor.stop(grace_s) for actor in self._actors.values()))
        self._actors.clear()

    async def scale(self, stage: StageName, num_actors: int, *, wait: bool, timeout_s: float) -> admin_pb2.StageStatus:
        """Sets how many actors `stage` should have; with `wait` returns when it has that many ready and no other.

        From now on the scaling policy leaves the stage alone, until `unpin`.

        Raises InvalidRequest when no request could be answered with that, DeadlineExceeded when waiting takes longer
        than `timeout_s` (the wish stands), and the reason when new actors fail to start.
        """
        check_scale(self._config.mode, self._wanted, stage, num_actors)
        logger.info("stage %s: %d actors wanted, %d before", stage, num_actors, self._wanted[stage])
        self._pinned.add(stage)
        self.set_wanted(stage, num_actors)
        if wait:
            try:
                async with asyncio.timeout(timeout_s - min(ANSWER_MARGIN_S, timeout_s / 10)):
                    await self._wait_until_reached(stage)
            except TimeoutError:
                ready = len(self._in_phase(stage, Phase.READY))
                raise DeadlineExceeded(
                    f"{ready} of {num_actors} {stage} actors ready after {timeout_s:.3g} s"
                    + (f"; {obstacle}" if (obstacle := self._obstacle(stage)) else "")
                    + f"; {num_actors} stay wanted",
                    field="num_actors",
                ) from None
        return self._status(stage)

    async def move(
        self, from_stage: StageName, to_stage: StageName, actor_id: str = "", *, is_automatic: bool = False
    ) -> str:
        """Has a ready actor of `from_stage`, the least busy one or a named one, take work of `to_stage`; its id there.

        Unless `is_automatic` policies leave both stages alone from now on, until `unpin`.

        Raises InvalidRequest when no request could be answered then or there is no such actor, and what keeps the
        actor from it. Both stages are wanted as before then.
        """
        check_move(self._config.mode, self._wanted, from_stage, to_stage)
        ready = [actor for actor in self._in_phase(from_stage, Phase.READY) if actor_id in ("", actor.actor_id)]
        if not ready:
            raise InvalidRequest(
                f"no ready actor {actor_id or ''} in stage {from_stage}".replace("  ", " "), field="actor_id"
            )
        actor = min(ready, key=lambda actor: self._load_of(actor.actor_id))
        logger.info("%s moves from stage %s to %s", actor.actor_id, from_stage, to_stage)
        if not is_automatic:
            self._pinned.update((from_stage, to_stage))
        self._shift_wanted(from_stage, to_stage)
        actor.begin_move(to_stage)
        # At once: nothing new is to be sent there that it would have to refuse.
        self._publish()
        # Whoever asked may go away; the actor moves all the same.
        moving = asyncio.get_running_loop().create_task(self._finish_move(actor, from_stage, to_stage))
        self._moving.add(moving)
        moving.add_done_callback(self._moving.discard)
        return await asyncio.shield(moving)

    def set_wanted(self, stage: StageName, num_actors: int) -> None:
        """What the scaling policy decided, within its bounds."""
        self._wanted[stage] = num_actors
        self._remember()
        self._wake.set()

    def is_pinned(self, stage: StageName) -> bool:
        """Whether `scale` said how many actors there are to be."""
        return stage in self._pinned

    def unpin(self, stage: StageName) -> None:
        """Gives the stage back to the scaling policy."""
        self._pinned.discard(stage)
        self._remember()

    def counts(self, stage: StageName) -> ActorCounts:
        """The actors of a stage, by what they are doing."""
        phases = (Phase.READY, Phase.STARTING, Phase.DRAINING)
        return ActorCounts(self._wanted[stage], *(len(self._in_phase(stage, phase)) for phase in phases))

    def start_s(self, stage: StageName) -> float | None:
        """How long the latest actor of a stage took from its launch until it was ready; None before the first."""
        return self._start_s.get(stage)

    def topology(self) -> list[admin_pb2.StageStatus]:
        """Every stage with its wanted count and its actors, whatever their state."""
        return [self._status(stage) for stage in StageName]

    def start_failure(self, stage: StageName) -> TriptychError | None:
        """Why the last actor of `stage` did not start; None once one started."""
        failures = self._backoff.failures(stage)
        return failures.error if failures is not None else None

    def is_hopeless(self, stage: StageName) -> bool:
        """Whether another start of `stage` is of little use: what the configuration or the checkpoint got wrong, it
        gets wrong again."""
        failures = self._backoff.failures(stage)
        return failures is not None and (
            failures.count >= START_ATTEMPTS or isinstance(failures.error, ConfigurationError | ModelError)
        )

    def on_published(self, callback: Callable[[], None]) -> None:
        """Calls `callback()` whenever `topology` may have changed."""
        self._on_published = callback

    async def _adopt(self) -> None:
        """Before anything is published: routers would take actors that are not in it yet for lost."""
        for stage, process in self._launcher.running():
            self._add(stage, process, lambda error: None)
        deadline_s = self._clock() + min(ADOPTION_S, self._config.control.health_timeout_s)
        # Those that serve answer at once; those that still start are waited for by `look_after` like any other.
        while any(actor.phase is Phase.STARTING for actor in self._actors.values()) and self._clock() < deadline_s:
            await self._rest()

    async def _finish_move(self, actor: SupervisedActor, from_stage: StageName, to_stage: StageName) -> str:
        try:
            await actor.finish_move()
        except BaseException:
            self._shift_wanted(to_stage, from_stage)
            raise
        finally:
            self._publish()
        return actor.actor_id

    def _shift_wanted(self, from_stage: StageName, to_stage: StageName) -> None:
        self._wanted[from_stage] -= 1
        self._wanted[to_stage] += 1
        self._remember()

    def _remember(self) -> None:
        self._store.save(Wanted(dict(self._wanted), frozenset(self._pinned)))

    async def _reconcile_forever(self) -> None:
        while True:
            try:
                self._reconcile()
            except Exception:
                # A bug here must not end supervision: say so, and try again.
                logger.exception("reconcile")
            await self._rest()

    def _reconcile(self) -> None:
        self._observe()
        views = [actor.view(self._load_of(actor.actor_id)) for actor in self._actors.values()]
        resting = [stage for stage in StageName if self._backoff.is_resting(stage)]
        for action in plan(self._wanted, views, resting):
            self._act(action)
        self._publish()

    def _observe(self) -> None:
        """Forgets actors that ended, and has the others looked after."""
        for actor in list(self._actors.values()):
            if actor.phase is Phase.ENDED:
                del self._actors[actor.number]
            else:
                actor.look_after()

    def _act(self, action: Action) -> None:
        match action:
            case Launch(stage):
                self._add(stage, self._launcher.launch(stage), partial(self._note_start, stage, self._clock()))
            case Drain(number):
                self._actors[number].drain()
            case Discard(number):
                self._actors[number].discard()

    def _add(self, stage: StageName, process: ActorProcess, on_started: Callable[[TriptychError | None], None]) -> None:
        self._launched += 1
        self._actors[self._launched] = SupervisedActor(
            self._launched,
            stage,
            process,
            self._config.control,
            self._clock,
            on_started=on_started,
            on_change=self._wake.set,
            lacking=partial(self._launcher.lacking, stage),
        )

    def _publish(self) -> None:
        members = [member for actor in self._actors.values() if (member := actor.member()) is not None]
        self._membership.set(members)
        for actor in self._actors.values():
            if actor.phase is Phase.READY and not actor.is_suspect:
                self._membership.restore(actor.actor_id)
        self._changed.set()
        self._changed = asyncio.Event()
        if self._progress is not None:
            self._progress(self.topology())
        self._on_published()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._config.control.reconcile_interval_s):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _wait_until_reached(self, stage: StageName) -> None:
        while not self._is_reached(stage):
            self._raise_if_hopeless(stage)
            await self._changed.wait()

    def _is_reached(self, stage: StageName) -> bool:
        num_actors = sum(actor.stage is stage for actor in self._actors.values())
        # Asked of the membership: the dispatcher must know them too.
        return num_actors == len(self._membership.members(stage)) == self._wanted[stage]

    def _raise_if_hopeless(self, stage: StageName) -> None:
        error = self.start_failure(stage)
        if error is not None and self.is_hopeless(stage):
            raise error

    def _in_phase(self, stage: StageName, phase: Phase) -> list[SupervisedActor]:
        return [actor for actor in self._actors.values() if actor.stage is stage and actor.phase is phase]

    def _obstacle(self, stage: StageName) -> str:
        """Why the wanted actors are not there, where that is known."""
        error = self.start_failure(stage)
        missing = self._launcher.lacking(stage)
        parts = (missing and f"the cluster lacks {missing}", error and f"the last start failed: {error}")
        return "; ".join(str(part) for part in parts if part)

    def _status(self, stage: StageName) -> admin_pb2.StageStatus:
        actors = [actor for actor in self._actors.values() if actor.stage is stage]
        is_short = any(actor.waits_for_place for actor in actors) or self._backoff.failures(stage) is not None
        return admin_pb2.StageStatus(
            stage=stage.to_proto(),
            wanted_actors=self._wanted[stage],
            actors=[actor.status() for actor in actors],
            obstacle=self._obstacle(stage) if is_short else "",
        )

    def _on_lost(self, actor_id: str) -> None:
        for actor in self._actors.values():
            if actor.actor_id == actor_id:
                actor.suspect()

    def _note_start(self, stage: StageName, launched_s: float, error: TriptychError | None) -> None:
        if error is None:
            self._start_s[stage] = self._clock() - launched_s
            self._backoff.note_success(stage)
        else:
            self._backoff.note_failure(stage, error)
