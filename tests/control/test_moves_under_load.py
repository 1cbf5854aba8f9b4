"""Actors change their stage while requests run: routers follow, answers are the undisturbed ones, nothing is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import InProcessSystem, Topology
from PIL import Image

from benchmarks.own_actors import OwnLauncher
from router.control.controller import Controller
from router.control.membership import StageName
from triptych.client import Answer
from triptych.errors import InvalidRequest
from triptych.switch import SWITCH

ENCODER, PREFILL, DECODE, BOTH = StageName
COUNTS = Topology(encoder=1, prefill=2, decode=2)


class Moving:
    """The system in one process, with a controller over real actors."""

    def __init__(self, folder: Path) -> None:
        self.system = InProcessSystem(
            folder, Topology(), stages={s.value: {"replicas": COUNTS.count(s)} for s in StageName}
        )
        self.launcher = OwnLauncher(self.system.config)
        self.controller = Controller(self.system.config, self.launcher, self.system.membership)

    async def start(self) -> None:
        await self.system.__aenter__()
        await self.controller.start()
        self.system.actors = {process.actor._actor_id: process.actor for process in self.launcher.processes}

    async def stop(self) -> None:
        await self.controller.stop(0.0)
        await self.launcher.close()
        await self.system.__aexit__()

    def counts(self) -> list[int]:
        return [len(self.system.ids(stage)) for stage in StageName]

    async def ask(self, number: int) -> Answer:
        """Of several kinds, some sampled; long enough to outlive a move."""
        kind = number % 3
        images = [Image.new("RGB", (84 + 28 * kind, 56), (10 * (number % 20), 99, 200))] if kind else []
        sampling = {"temperature": 1.0, "seed": number} if number % 2 else {}
        question = f"question {number}: what is it?"
        return await self.system.client.ask(question, images=images, max_tokens=24, ignore_eos=True, **sampling)


@pytest.fixture
async def moving(random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Moving]:
    monkeypatch.setenv(SWITCH, "1")
    moving = Moving(random_model_folder)
    try:
        await moving.start()
        yield moving
    finally:
        await moving.stop()


MOVES = (
    (PREFILL, DECODE, [1, 1, 3, 0]),
    (DECODE, BOTH, [1, 1, 2, 1]),
    (DECODE, PREFILL, [1, 2, 1, 1]),
    (BOTH, DECODE, [1, 2, 2, 0]),
    (PREFILL, BOTH, [1, 1, 2, 1]),
    (BOTH, PREFILL, [1, 2, 2, 0]),
)


async def test_every_answer_is_the_undisturbed_one(moving: Moving) -> None:
    numbers = range(12)
    undisturbed = await asyncio.gather(*map(moving.ask, numbers))
    ids = sorted(moving.system.actors)
    answers: list[asyncio.Task[Answer]] = []
    for round_number, (from_stage, to_stage, counts) in enumerate(MOVES):
        answers += [asyncio.create_task(moving.ask(number)) for number in numbers]
        # Somewhere in the middle of them, another place each time.
        await asyncio.wait(answers[-len(numbers) :], return_when=asyncio.FIRST_COMPLETED, timeout=0.01 * round_number)
        moved = await moving.controller.move(from_stage, to_stage, is_automatic=True)
        assert moved in moving.system.ids(to_stage)
        assert moving.counts() == counts
    results = await asyncio.gather(*answers)
    assert [answer.token_ids for answer in results] == [answer.token_ids for answer in undisturbed] * len(MOVES)
    await moving.system.wait_until_nothing_is_held()
    assert (
        sorted(moving.system.actors)
        == ids
        == sorted(member.actor_id for member in moving.system.membership.all_members())
    )
    assert [status.wanted_actors for status in moving.controller.topology()] == MOVES[-1][2]
    assert not any(map(moving.controller.is_pinned, StageName))


async def test_an_actor_that_has_moved_is_placed_on_and_one_that_can_not_stays(moving: Moving) -> None:
    with pytest.raises(InvalidRequest):
        await moving.controller.move(ENCODER, DECODE)
    for _ in range(2):
        await moving.controller.move(DECODE, BOTH)
    with pytest.raises(InvalidRequest):
        await moving.controller.move(DECODE, BOTH)
    assert moving.controller.is_pinned(BOTH)
    for _ in range(2):
        await moving.controller.move(PREFILL, BOTH)
    # All of it in one stage: the walk has no prefill of its own any more.
    answer = await moving.ask(1)
    assert answer.route.prefill_actor == answer.route.decode_actor
    with pytest.raises(InvalidRequest, match="no ready actor nobody"):
        await moving.controller.move(BOTH, DECODE, "nobody")
    assert moving.counts() == [1, 0, 0, 4]
