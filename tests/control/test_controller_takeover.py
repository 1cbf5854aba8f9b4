"""A controller that takes over from one that ended, and actors that find no place: with actors without processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_launcher import FakeActor, FakeLauncher
from steady_load import until

from router.control.actor_name import CONTROLLER, ActorName
from router.control.controller import Controller
from router.control.membership import Membership, StageName
from router.control.starts_once import StartsOnce
from router.control.wanted_store import Wanted, WantedStore
from triptych.config import DeploymentConfig
from triptych.errors import Unavailable
from triptych.v1 import admin_pb2

ENCODER, PREFILL, DECODE = StageName.ENCODER, StageName.PREFILL, StageName.DECODE
CONTROL = {"reconcile_interval_s": 0.01, "health_timeout_s": 0.2, "start_timeout_s": 5.0, "placement_timeout_s": 5.0}


class KeptStore(WantedStore):
    def __init__(self) -> None:
        self.kept: Wanted | None = None

    def load(self) -> Wanted | None:
        return self.kept

    def save(self, wanted: Wanted) -> None:
        self.kept = wanted


def make_controller(
    launcher: FakeLauncher, store: WantedStore | None = None, **control: Any
) -> tuple[Controller, Membership]:
    config = DeploymentConfig.from_sources(overrides={"control": {**CONTROL, **control}}, environment={})
    membership = Membership()
    return Controller(config, launcher, membership, store=store), membership


def left(*stages: StageName) -> list[FakeActor]:
    return [FakeActor(stage, f"old-{stage}-{number:02d}") for number, stage in enumerate(stages, 50)]


async def test_actors_that_are_there_are_taken_over_and_only_missing_ones_made() -> None:
    launcher = FakeLauncher()
    launcher.left = left(ENCODER, DECODE)
    controller, membership = make_controller(launcher)
    views: list[int] = []
    membership.on_change(lambda: views.append(len(membership.all_members())))
    await controller.start()
    assert [actor.stage for actor in launcher.actors] == [PREFILL]
    assert {member.actor_id for member in membership.all_members()} == {
        "old-encoder-50",
        "old-decode-51",
        "prefill-00",
    }
    assert views[0] == 2, "those that are there are known at once: routers never see an empty view"
    await controller.stop(0.0)


async def test_one_that_was_being_drained_is_drained_on_and_no_new_work_goes_there() -> None:
    launcher = FakeLauncher()
    launcher.left = left(ENCODER, ENCODER)
    launcher.left[1].state = admin_pb2.ACTOR_STATE_DRAINING
    controller, membership = make_controller(launcher)
    await controller.begin()
    await until(lambda: launcher.left[1].is_draining, 3.0)
    assert [member.actor_id for member in membership.members(ENCODER)] == ["old-encoder-50"]
    launcher.left[1].work_done.set()
    await until(lambda: bool(launcher.left[1].stops), 3.0)
    await controller.stop(0.0)


async def test_one_that_does_not_answer_holds_the_others_up_no_longer_than_a_health_check() -> None:
    launcher = FakeLauncher()
    launcher.left = left(ENCODER, PREFILL)
    launcher.left[1].start_gate = asyncio.Event()
    controller, membership = make_controller(launcher)
    await asyncio.wait_for(controller.begin(), 3.0)
    await until(lambda: bool(membership.members(ENCODER)), 3.0)
    assert not launcher.of(PREFILL), "it may only be starting: none is made in its place"
    launcher.left[1].start_gate.set()
    await until(lambda: bool(membership.members(PREFILL)), 3.0)
    await controller.stop(0.0)


async def test_what_was_wanted_and_who_said_so_outlives_the_controller() -> None:
    store, launcher = KeptStore(), FakeLauncher()
    controller, _ = make_controller(launcher, store)
    await controller.start()
    await controller.scale(ENCODER, 3, wait=True, timeout_s=3.0)
    # It ends without a word; its actors stay.
    next_launcher = FakeLauncher()
    next_launcher.left = launcher.actors
    successor, membership = make_controller(next_launcher, store)
    await successor.start()
    assert len(membership.members(ENCODER)) == 3 and not next_launcher.actors
    assert successor.is_pinned(ENCODER) and not successor.is_pinned(DECODE)
    await successor.stop(0.0)
    await controller.stop(0.0)


async def test_an_actor_without_a_place_is_reported_then_given_up_with_the_reason() -> None:
    launcher = FakeLauncher()
    controller, membership = make_controller(launcher, placement_timeout_s=0.2)
    await controller.start()
    launcher.place_gate, launcher.missing = asyncio.Event(), "GPUs (1 an actor, 0 free)"
    await controller.scale(ENCODER, 2, wait=False, timeout_s=1.0)
    await until(lambda: obstacle(controller) == "the cluster lacks GPUs (1 an actor, 0 free)", 3.0)
    await until(lambda: controller.start_failure(ENCODER) is not None, 3.0)
    assert str(controller.start_failure(ENCODER)) == (
        "no place within control.placement_timeout_s=0.2: the cluster lacks GPUs (1 an actor, 0 free)"
    )
    assert launcher.of(ENCODER)[1].stops == [0.0], "its demand is taken back"
    # It is tried again, and a place that came meanwhile is taken.
    launcher.place_gate, launcher.missing = None, ""
    await until(lambda: len(membership.members(ENCODER)) == 2, 3.0)
    assert obstacle(controller) == ""
    await controller.stop(0.0)


def obstacle(controller: Controller) -> str:
    return next(status.obstacle for status in controller.topology() if status.stage == ENCODER.to_proto())


def test_names_are_read_as_they_were_written() -> None:
    name = ActorName.new(StageName.PREFILL_DECODE).of_rank(3)
    assert ActorName.parse(str(name)) == name
    assert ActorName.new(ENCODER) != ActorName.new(ENCODER)
    for other in (CONTROLLER, "triptych.stage.encoder.ab", "triptych.stage.cook.ab.0", "x.triptych.stage.encoder.ab.0"):
        assert ActorName.parse(other) is None


async def test_a_start_is_done_once_for_all_who_ask() -> None:
    calls, once = [], StartsOnce[int]()

    async def work() -> int:
        calls.append(1)
        await asyncio.sleep(0.01)
        return len(calls)

    first = asyncio.create_task(once(work))
    await asyncio.sleep(0)
    first.cancel()
    assert await once(work) == 1 == await once(work)

    async def fail() -> int:
        raise Unavailable("no")

    failing = StartsOnce[int]()
    for _ in range(2):
        with pytest.raises(Unavailable):
            await failing(fail)
