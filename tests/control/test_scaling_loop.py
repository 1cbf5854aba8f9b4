"""The scaling loop over the real controller, with actors that have no process and a clock that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_launcher import FakeLauncher
from prometheus_client import CollectorRegistry, generate_latest

from router.control.controller import Controller
from router.control.membership import Member, Membership, StageName
from router.control.scaling.demand import Demand, Work
from router.control.scaling.metrics import ScalingMetrics
from router.control.scaling.scaling_loop import ScalingLoop
from triptych.config import DeploymentConfig
from triptych.errors import ConfigurationError
from triptych.v1 import admin_pb2

ENCODER, DECODE = StageName.ENCODER, StageName.DECODE
SCALING: dict[str, Any] = {
    "start_s": 5.0,
    "smoothing_s": 2.0,
    "down_window_s": 20.0,
    "down_cooldown_s": 5.0,
    "zero_after_s": 40.0,
    "encoder": {"min_actors": 1, "max_actors": 4, "work_per_s": 1_000.0},
    "decode": {"max_actors": 3, "max_streams": 10},
}


class System:
    """`patches_per_s` arrive in every second; `streams` run on every decode actor."""

    def __init__(self, **scaling: Any) -> None:
        control = {"reconcile_interval_s": 0.01, "health_timeout_s": 5.0, "drain_timeout_s": 0.05}
        config = DeploymentConfig.from_sources(
            overrides={"control": control, "scaling": {**SCALING, **scaling}}, environment={}
        )
        self.now_s = 0.0
        self.patches_per_s = 0
        self.streams = 0
        self.waiting = Work()
        self.demand = Demand(config.scaling, lambda: self.now_s)
        self.membership = Membership()
        self.launcher = FakeLauncher()
        self.registry = CollectorRegistry()
        # The starts of actors without processes take no time; the policy reckons with scaling.start_s.
        self.controller = Controller(config, self.launcher, self.membership, clock=lambda: self.now_s)
        self.loop = ScalingLoop(
            config,
            self.controller,
            self,
            self.membership,
            self.ask,
            ScalingMetrics("tiny", self.registry),
            lambda: self.now_s,
        )

    def unplaced(self) -> Work:
        return self.waiting

    def work_on(self, actor_id: str) -> Work:
        return Work()

    async def ask(self, member: Member) -> admin_pb2.ActorInfo:
        running = self.streams if member.stage is DECODE else 0
        return admin_pb2.ActorInfo(
            actor_id=member.actor_id, language=admin_pb2.LanguageCounters(running_requests=running)
        )

    async def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            self.demand.note_arrival(self.patches_per_s, 0)
            await self.loop.step()
            await asyncio.sleep(0.003)
        await self.settle()

    async def settle(self) -> None:
        """Until the controller has what is wanted."""
        async with asyncio.timeout(5.0):
            while any(self.controller.counts(stage).wanted != self.num(stage) for stage in StageName):
                await self.membership.wait_for_change()

    def num(self, stage: StageName) -> int:
        return len(self.membership.members(stage))


@pytest.fixture
async def system() -> AsyncIterator[System]:
    system = System()
    await system.controller.start()
    yield system
    await system.controller.stop(0.0)


async def test_encoders_come_with_the_pictures_and_go_after_them(system: System) -> None:
    system.patches_per_s = 2_000
    await system.run(30)
    assert system.num(ENCODER) == 3  # 2,000 of 1,000 each, at 0.7
    assert system.num(DECODE) == 1
    system.patches_per_s = 100
    await system.run(40)
    assert system.num(ENCODER) == 1
    drained = [actor for actor in system.launcher.of(ENCODER) if actor.is_draining]
    assert len(drained) == 2, "they were asked to finish their work before they were ended"
    assert all(actor.stops for actor in drained)


async def test_decode_actors_come_with_the_streams_that_they_count(system: System) -> None:
    system.streams = 12
    await system.run(40)
    # Two with 12 each are again too many: the streams of this test are so many on every actor.
    assert system.num(DECODE) == 3, "max_actors"


async def test_decisions_are_counted_with_their_reasons(system: System) -> None:
    system.patches_per_s = 2_000
    await system.run(30)
    page = generate_latest(system.registry).decode()
    assert 'triptych:replicas_wanted{model_name="tiny",stage="encoder"} 3.0' in page
    assert 'triptych:replicas_running{model_name="tiny",stage="encoder"} 3.0' in page
    assert 'direction="up",model_name="tiny",reason="load",stage="encoder"}' in page


async def test_what_an_operator_set_stays_until_it_is_given_back(system: System) -> None:
    await system.controller.scale(ENCODER, 2, wait=True, timeout_s=5.0)
    system.patches_per_s = 3_000
    await system.run(30)
    assert system.num(ENCODER) == 2
    system.controller.unpin(ENCODER)
    await system.run(10)
    assert system.num(ENCODER) == 4


async def test_an_idle_encoder_stage_goes_and_comes_with_the_first_waiting_picture() -> None:
    system = System(encoder={"min_actors": 0, "max_actors": 2, "work_per_s": 1_000.0})
    await system.controller.start()
    await system.run(60)
    assert system.num(ENCODER) == 0
    system.waiting = Work(num_patches=64)
    await system.run(1)
    assert system.num(ENCODER) == 1
    await system.controller.stop(0.0)


async def test_without_bounds_of_its_own_no_stage_changes() -> None:
    system = System(encoder={}, decode={})
    await system.controller.start()
    system.patches_per_s, system.streams = 10**6, 1_000
    await system.run(30)
    assert [system.num(stage) for stage in StageName] == [1, 1, 1, 0]
    await system.controller.stop(0.0)


def test_a_bad_policy_or_range_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="load_and_slo"):
        System(policy="guess")
    with pytest.raises(ConfigurationError, match="min_actors=3"):
        System(encoder={"min_actors": 3, "max_actors": 2})
    with pytest.raises(ConfigurationError, match="only encoders may go"):
        System(decode={"min_actors": 0, "max_actors": 2})
