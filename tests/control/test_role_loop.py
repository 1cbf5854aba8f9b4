"""The whole system in one process, with the role policy on: actors go where a load of long answers needs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.own_actors import OwnLauncher
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import Answer, AsyncClient
from triptych.config import DeploymentConfig
from triptych.rpc.channels import ChannelPool
from triptych.switch import SWITCH
from triptych.v1 import admin_pb2

ROLES = {"policy": "balance", "settle_s": 0.1, "cooldown_s": 0.2}
SCALING = {"interval_s": 0.05, "smoothing_s": 0.1, "roles": ROLES, "decode": {"max_streams": 2}}


class OwnCluster:
    """The router's cluster: this process."""

    def launcher(self, config: DeploymentConfig, channels: ChannelPool) -> OwnLauncher:
        return OwnLauncher(config)

    def end_at_once(self) -> None:
        return


class System:
    def __init__(self, server: RouterServer, client: AsyncClient) -> None:
        self.server = server
        self.client = client

    async def ask(self, number: int, max_tokens: int) -> Answer:
        return await self.client.ask(f"{number} and so on", max_tokens=max_tokens, ignore_eos=True)

    async def counts(self) -> dict[str, int]:
        """Ready actors by stage."""
        stages = (await self.client.topology()).stages
        ready = admin_pb2.ACTOR_STATE_READY
        return {
            str(StageName.from_proto(stage.stage)): sum(actor.state == ready for actor in stage.actors)
            for stage in stages
        }

    async def until(self, **expected: int) -> None:
        async with asyncio.timeout(30):
            while not expected.items() <= (await self.counts()).items():  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture
async def system(random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    monkeypatch.setenv(SWITCH, "1")
    language: dict[str, Any] = {"num_pages": 256}
    stages = {
        "encoder": {"replicas": 1},
        "prefill": {"replicas": 3, **language},
        "decode": {"replicas": 1, **language},
        "prefill_decode": language,
    }
    config = DeploymentConfig.from_sources(
        overrides={
            "model": {"path": str(random_model_folder), "dtype": "float32"},
            "stages": stages,
            "scaling": SCALING,
            "router": {"port": 0, "http_port": -1},
        },
        environment={},
    )
    server = RouterServer(config, OwnCluster())
    try:
        async with AsyncClient(await server.start(), timeout_s=60) as client:
            yield System(server, client)
    finally:
        await server.stop()


async def test_long_answers_bring_prefill_actors_to_decode(system: System) -> None:
    numbers = range(12)
    undisturbed = [(await system.ask(number, 40)).token_ids for number in numbers]
    assert await system.counts() == {"encoder": 1, "prefill": 3, "decode": 1, "prefill_decode": 0}

    async def keep_asking(number: int) -> None:
        while True:
            assert (await system.ask(number, 40)).token_ids == undisturbed[number]

    workers = [asyncio.create_task(keep_asking(number)) for number in numbers]
    try:
        await system.until(prefill=1, decode=3)
        await asyncio.wait(workers, timeout=0.3)
    finally:
        for worker in workers:
            worker.cancel()
    ends = await asyncio.gather(*workers, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def test_what_an_operator_moved_stays(system: System) -> None:
    moved = await system.client.move("prefill", "decode")
    assert [(status.stage, status.wanted_actors) for status in moved.stages] == [
        (StageName.PREFILL.to_proto(), 2),
        (StageName.DECODE.to_proto(), 2),
    ]
    assert system.server.controller.is_pinned(StageName.DECODE)
    await asyncio.gather(*(system.ask(number, 60) for number in range(12)))
    assert await system.counts() == {"encoder": 1, "prefill": 2, "decode": 2, "prefill_decode": 0}
