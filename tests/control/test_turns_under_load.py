"""Actors with both halves of the model turn from encoder to language model and back while requests run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from harness import InProcessSystem, Topology
from PIL import Image

from benchmarks.own_actors import OwnLauncher
from router.control.controller import Controller
from router.control.membership import StageName
from router.control.roles.host_weights import HostWeights
from router.control.roles.turning_actor import TurningActor
from triptych.client import Answer
from triptych.config import DeploymentConfig
from triptych.errors import ConfigurationError
from triptych.switch import SWITCH

ENCODER, PREFILL, DECODE, BOTH = StageName


class Turning:
    """Two encoders, one prefill and one decode actor, all with both halves, in one process under a controller."""

    def __init__(self, folder: Path) -> None:
        stages = {"encoder": {"replicas": 2}, "prefill": {"replicas": 1}, "decode": {"replicas": 1}}
        self.system = InProcessSystem(folder, Topology(), stages=stages, control={"keep_both_halves": True})
        self.launcher = OwnLauncher(self.system.config)
        self.controller = Controller(self.system.config, self.launcher, self.system.membership)

    async def start(self) -> None:
        await self.system.__aenter__()
        await self.controller.start()

    async def stop(self) -> None:
        await self.controller.stop(0.0)
        await self.launcher.close()
        await self.system.__aexit__()

    def halves(self) -> list[TurningActor]:
        return [process.actor for process in self.launcher.processes if isinstance(process.actor, TurningActor)]

    def held(self) -> int:
        """Requests, pages, leases and patches in all halves, also those that rest."""
        total = 0
        for actor in self.halves():
            language, encoder = actor._language.describe(), actor._encoder.describe()
            total += language.language.held_pages + language.language.running_requests
            total += language.leases.held_leases + encoder.leases.held_leases + encoder.encoder.pending_patches
        return total

    async def ask(self, number: int) -> Answer:
        """With a picture of its own, half of them sampled."""
        image = Image.new("RGB", (84 + 28 * (number % 3), 56), (7 * number % 255, 99, 200))
        sampling = {"temperature": 1.0, "seed": number} if number % 2 else {}
        return await self.system.client.ask(
            f"{number}: what is it?", images=[image], max_tokens=16, ignore_eos=True, **sampling
        )


@pytest.fixture
async def turning(random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turning]:
    monkeypatch.setenv(SWITCH, "1")
    turning = Turning(random_model_folder)
    try:
        await turning.start()
        yield turning
    finally:
        await turning.stop()


TURNS = ((ENCODER, DECODE), (DECODE, ENCODER), (ENCODER, PREFILL), (PREFILL, ENCODER), (ENCODER, BOTH), (BOTH, ENCODER))


async def test_every_answer_is_the_undisturbed_one(turning: Turning) -> None:
    numbers = range(12)
    undisturbed = await asyncio.gather(*map(turning.ask, numbers))
    answers: list[asyncio.Task[Answer]] = []
    for from_stage, to_stage in TURNS:
        answers += [asyncio.create_task(turning.ask(number)) for number in numbers]
        await asyncio.sleep(0.03)
        counts = {stage: len(turning.system.ids(stage)) for stage in (from_stage, to_stage)}
        moved = await turning.controller.move(from_stage, to_stage, is_automatic=True)
        assert moved in turning.system.ids(to_stage)
        assert len(turning.system.ids(from_stage)) == counts[from_stage] - 1
        assert len(turning.system.ids(to_stage)) == counts[to_stage] + 1
    results = await asyncio.gather(*answers)
    assert [answer.token_ids for answer in results] == [answer.token_ids for answer in undisturbed] * len(TURNS)
    async with asyncio.timeout(5):
        while turning.held():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    # The half that rests has no weights on the device, the other has all of its own.
    for actor in turning.halves():
        works, rests = ("vision", "language") if actor._active is actor._encoder else ("language", "vision")
        assert actor._weights[works].is_on_device and not actor._weights[rests].is_on_device


async def test_only_where_encoders_are_apart(random_model_folder: Path) -> None:
    config = DeploymentConfig.from_sources(
        overrides={"mode": "colocated", "model": {"path": str(random_model_folder)}}, environment={}
    )
    with pytest.raises(ConfigurationError, match="keep_both_halves"):
        TurningActor(config, BOTH)


def test_weights_come_back_as_they_were() -> None:
    weights = [torch.randn(33, 7), torch.arange(5).to(torch.bfloat16), torch.nn.Parameter(torch.ones(3), False)]
    before = [tensor.clone() for tensor in weights]
    held = HostWeights()
    held.hold(weights)
    for _ in range(2):
        held.release()
        held.release()
        assert all(tensor.untyped_storage().nbytes() == 0 for tensor in weights)
        held.restore()
        held.restore()
        assert all(map(torch.equal, weights, before))
