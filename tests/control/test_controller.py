"""The controller with actors that have no process: start, loss, replacement, back-off, scaling, draining."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_launcher import FakeLauncher

from router.control.controller import Controller
from router.control.launcher import Health
from router.control.membership import Membership, StageName
from triptych.config import DeploymentConfig
from triptych.errors import DeadlineExceeded, InvalidRequest, ModelError, Unavailable
from triptych.v1 import admin_pb2

ENCODER, PREFILL, DECODE, BOTH = StageName.ENCODER, StageName.PREFILL, StageName.DECODE, StageName.PREFILL_DECODE
CONTROL = {
    "reconcile_interval_s": 0.01,
    "health_timeout_s": 0.1,
    "start_timeout_s": 5.0,
    "drain_timeout_s": 5.0,
}


class Deployment:
    def __init__(self, loads: dict[str, int] | None = None, **control: Any) -> None:
        overrides = {"control": {**CONTROL, **control}}
        self.config = DeploymentConfig.from_sources(overrides=overrides, environment={})
        self.launcher = FakeLauncher()
        self.membership = Membership()
        loads = {} if loads is None else loads
        self.controller = Controller(
            self.config, self.launcher, self.membership, load_of=lambda actor_id: loads.get(actor_id, 0)
        )

    def ready(self, stage: StageName) -> list[str]:
        return [member.actor_id for member in self.membership.members(stage)]

    def states(self, stage: StageName) -> list[int]:
        status = next(status for status in self.controller.topology() if status.stage == stage.to_proto())
        return [actor.state for actor in status.actors]


@pytest.fixture
async def deployment() -> AsyncIterator[Deployment]:
    deployment = Deployment()
    yield deployment
    await deployment.controller.stop(0.0)


async def until(condition: Callable[[], bool], timeout_s: float = 3.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.005)


async def test_start_brings_every_stage_up_and_reports_progress(deployment: Deployment) -> None:
    seen: list[int] = []
    await deployment.controller.start(
        lambda stages: seen.append(
            sum(actor.state == admin_pb2.ACTOR_STATE_READY for stage in stages for actor in stage.actors)
        )
    )
    assert [deployment.ready(stage) for stage in StageName] == [["encoder-00"], ["prefill-01"], ["decode-02"], []]
    assert seen[0] == 0 and seen[-1] == 3


async def test_a_checkpoint_error_ends_the_start_at_once(deployment: Deployment) -> None:
    deployment.launcher.next_error = ModelError("no config.json", field="model.path")
    with pytest.raises(ModelError, match=r"no config\.json"):
        await asyncio.wait_for(deployment.controller.start(), 1.0)
    assert len(deployment.launcher.of(ENCODER)) == 1


async def test_crashes_at_start_are_tried_three_times_with_growing_pauses(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.control.backoff.FIRST_WAIT_S", 0.05)
    deployment.launcher.next_error = Unavailable("encoder actor died in start")
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="died in start"):
        await asyncio.wait_for(deployment.controller.start(), 3.0)
    assert time.monotonic() - begun >= 0.15
    assert len(deployment.launcher.of(ENCODER)) == 3
    assert all(actor.stops == [0.0] for actor in deployment.launcher.actors)


async def test_a_dead_actor_is_replaced_under_a_new_id(deployment: Deployment) -> None:
    await deployment.controller.start()
    deployment.launcher.of(DECODE)[0].health = Health.GONE
    await until(lambda: deployment.ready(DECODE) not in ([], ["decode-02"]))
    assert deployment.ready(DECODE) == ["decode-03"]
    assert deployment.launcher.of(DECODE)[0].stops == [0.0]


async def test_a_report_makes_the_check_come_at_once() -> None:
    deployment = Deployment(reconcile_interval_s=30.0, health_timeout_s=60.0)
    await deployment.controller.start()
    await asyncio.sleep(0.02)
    deployment.launcher.of(PREFILL)[0].health = Health.GONE
    deployment.membership.report_lost("prefill-01")
    assert deployment.ready(PREFILL) == []
    await until(lambda: deployment.ready(PREFILL) == ["prefill-03"], 1.0)
    await deployment.controller.stop(0.0)


async def test_an_actor_wrongly_reported_comes_back(deployment: Deployment) -> None:
    await deployment.controller.start()
    deployment.membership.report_lost("prefill-01")
    assert deployment.ready(PREFILL) == []
    await until(lambda: deployment.ready(PREFILL) == ["prefill-01"])
    assert len(deployment.launcher.of(PREFILL)) == 1


async def test_a_silent_actor_is_replaced_only_after_the_health_timeout(deployment: Deployment) -> None:
    await deployment.controller.start()
    actor, begun = deployment.launcher.of(ENCODER)[0], time.monotonic()
    actor.health = Health.SILENT
    await until(lambda: deployment.ready(ENCODER) == ["encoder-03"])
    assert time.monotonic() - begun >= 0.07
    assert actor.num_checks >= 3


async def test_a_short_silence_is_forgiven(deployment: Deployment) -> None:
    await deployment.controller.start()
    actor = deployment.launcher.of(ENCODER)[0]
    actor.health = Health.SILENT
    await until(lambda: actor.num_checks >= 2)
    actor.health = Health.SERVING
    await asyncio.sleep(0.2)
    assert deployment.ready(ENCODER) == ["encoder-00"]


async def test_scale_up_waits_for_the_new_actors(deployment: Deployment) -> None:
    await deployment.controller.start()
    status = await deployment.controller.scale(ENCODER, 3, wait=True, timeout_s=2.0)
    assert status.wanted_actors == 3
    assert [actor.state for actor in status.actors] == [admin_pb2.ACTOR_STATE_READY] * 3
    assert len(deployment.ready(ENCODER)) == 3


async def test_scale_without_wait_answers_before_the_actor_is_ready(deployment: Deployment) -> None:
    await deployment.controller.start()
    deployment.launcher.gate = asyncio.Event()
    status = await deployment.controller.scale(DECODE, 2, wait=False, timeout_s=2.0)
    assert status.wanted_actors == 2 and len(deployment.ready(DECODE)) == 1
    await until(lambda: deployment.states(DECODE) == [admin_pb2.ACTOR_STATE_READY, admin_pb2.ACTOR_STATE_STARTING])
    deployment.launcher.gate.set()
    await until(lambda: len(deployment.ready(DECODE)) == 2)


async def test_an_actor_taken_away_finishes_its_work_first(deployment: Deployment) -> None:
    await deployment.controller.start()
    await deployment.controller.scale(DECODE, 2, wait=True, timeout_s=2.0)
    surplus = deployment.launcher.of(DECODE)[1]
    scaling = asyncio.create_task(deployment.controller.scale(DECODE, 1, wait=True, timeout_s=2.0))
    await until(lambda: surplus.is_draining)
    assert deployment.ready(DECODE) == ["decode-02"], "it must get no new work"
    assert deployment.states(DECODE) == [admin_pb2.ACTOR_STATE_READY, admin_pb2.ACTOR_STATE_DRAINING]
    assert surplus.stops == [] and not scaling.done()
    surplus.work_done.set()
    await scaling
    assert len(surplus.stops) == 1 and surplus.stops[0] > 0


async def test_the_least_loaded_actor_is_taken_away() -> None:
    deployment = Deployment(loads={"encoder-00": 0, "encoder-03": 7})
    await deployment.controller.start()
    await deployment.controller.scale(ENCODER, 2, wait=True, timeout_s=2.0)
    deployment.launcher.of(ENCODER)[0].work_done.set()
    await deployment.controller.scale(ENCODER, 1, wait=True, timeout_s=2.0)
    assert deployment.ready(ENCODER) == ["encoder-03"]
    await deployment.controller.stop(0.0)


async def test_a_drain_that_does_not_end_is_cut() -> None:
    deployment = Deployment(drain_timeout_s=0.05)
    await deployment.controller.start()
    await deployment.controller.scale(ENCODER, 2, wait=True, timeout_s=2.0)
    await deployment.controller.scale(ENCODER, 1, wait=True, timeout_s=2.0)
    assert deployment.launcher.of(ENCODER)[1].stops == [0.0]
    await deployment.controller.stop(0.0)


async def test_scaling_down_cancels_an_actor_that_still_starts(deployment: Deployment) -> None:
    await deployment.controller.start()
    deployment.launcher.gate = asyncio.Event()
    await deployment.controller.scale(DECODE, 2, wait=False, timeout_s=2.0)
    await until(lambda: len(deployment.launcher.of(DECODE)) == 2)
    await deployment.controller.scale(DECODE, 1, wait=True, timeout_s=2.0)
    assert deployment.launcher.of(DECODE)[1].stops == [0.0]
    assert deployment.ready(DECODE) == ["decode-02"]


async def test_waiting_too_long_says_how_far_it_came(deployment: Deployment) -> None:
    await deployment.controller.start()
    deployment.launcher.gate = asyncio.Event()
    deployment.launcher.missing = "GPUs (1 an actor, 0 free)"
    words = r"1 of 4 encoder actors ready after 0\.1 s; the cluster lacks GPUs \(1 an actor, 0 free\); 4 stay wanted"
    with pytest.raises(DeadlineExceeded, match=words):
        await deployment.controller.scale(ENCODER, 4, wait=True, timeout_s=0.1)


async def test_a_failing_scale_up_names_the_reason_and_leaves_the_others_alone(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.control.backoff.FIRST_WAIT_S", 0.02)
    await deployment.controller.start()
    deployment.launcher.next_error = Unavailable("out of memory")
    with pytest.raises(Unavailable, match="out of memory"):
        await deployment.controller.scale(ENCODER, 2, wait=True, timeout_s=3.0)
    assert deployment.ready(ENCODER) == ["encoder-00"]
    assert "out of memory" in str(deployment.controller.start_failure(ENCODER))
    deployment.launcher.next_error = None
    await until(lambda: len(deployment.ready(ENCODER)) == 2)
    assert deployment.controller.start_failure(ENCODER) is None


async def test_a_start_that_takes_too_long_names_the_setting() -> None:
    deployment = Deployment(start_timeout_s=0.02)
    deployment.launcher.gate = asyncio.Event()
    with pytest.raises(Unavailable, match=r"start_timeout_s=0\.02"):
        await asyncio.wait_for(deployment.controller.start(), 5.0)
    await deployment.controller.stop(0.0)


async def test_refused_wishes_change_nothing(deployment: Deployment) -> None:
    await deployment.controller.start()
    with pytest.raises(InvalidRequest, match="expected at least 1"):
        await deployment.controller.scale(ENCODER, 0, wait=True, timeout_s=1.0)
    await asyncio.sleep(0.05)
    assert deployment.ready(ENCODER) == ["encoder-00"]


async def test_stop_ends_every_actor_and_empties_the_view(deployment: Deployment) -> None:
    await deployment.controller.start()
    await deployment.controller.stop(1.5)
    assert [actor.stops for actor in deployment.launcher.actors] == [[1.5]] * 3
    assert deployment.membership.all_members() == []
    await deployment.controller.stop(1.5)


async def test_stop_does_not_wait_for_actors_that_still_start(deployment: Deployment) -> None:
    deployment.launcher.gate = asyncio.Event()
    starting = asyncio.create_task(deployment.controller.start())
    await until(lambda: len(deployment.launcher.actors) == 3)
    starting.cancel()
    await deployment.controller.stop(5.0)
    assert [actor.stops for actor in deployment.launcher.actors] == [[0.0]] * 3


async def test_a_launcher_that_raises_does_not_end_supervision(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployment.controller.start()
    launch, failures = deployment.launcher.launch, iter([True, True])

    def fail_twice(stage: StageName) -> Any:
        if next(failures, False):
            raise RuntimeError("bug")
        return launch(stage)

    monkeypatch.setattr(deployment.launcher, "launch", fail_twice)
    await deployment.controller.scale(ENCODER, 2, wait=True, timeout_s=2.0)
    assert len(deployment.ready(ENCODER)) == 2


async def test_an_actor_that_moves_takes_nothing_until_it_is_there() -> None:
    deployment = Deployment(loads={"decode-02": 3})
    controller = deployment.controller
    try:
        await controller.start()
        await controller.scale(DECODE, 2, wait=True, timeout_s=5)
        idle = deployment.launcher.actors[-1]
        idle.move_gate = asyncio.Event()
        moving = asyncio.create_task(controller.move(DECODE, BOTH))
        await until(lambda: deployment.ready(DECODE) == ["decode-02"])
        assert deployment.ready(BOTH) == []
        # Whoever asked for it goes away: it moves all the same.
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
        idle.move_gate.set()
        await until(lambda: deployment.ready(BOTH) == [idle.actor_id])
        assert [status.wanted_actors for status in controller.topology()] == [1, 1, 1, 1]
    finally:
        await controller.stop(0.0)


@pytest.mark.parametrize("error", [InvalidRequest("no"), Unavailable("died")])
async def test_a_move_that_fails_leaves_both_stages_as_they_were(error: Exception) -> None:
    """One that can't stays; one that nobody can tell is replaced."""
    deployment = Deployment()
    controller = deployment.controller
    try:
        await controller.start()
        await controller.scale(DECODE, 2, wait=True, timeout_s=5)
        for actor in deployment.launcher.of(DECODE):
            actor.move_error = error
        before = deployment.ready(DECODE)
        with pytest.raises(type(error)):
            await controller.move(DECODE, PREFILL)
        is_lost = isinstance(error, Unavailable)
        await until(lambda: len(deployment.ready(DECODE)) == 2 and (deployment.ready(DECODE) == before) is not is_lost)
        assert [status.wanted_actors for status in controller.topology()] == [1, 1, 2, 0]
        assert len(deployment.ready(PREFILL)) == 1
    finally:
        await controller.stop(0.0)
