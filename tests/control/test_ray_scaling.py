"""A stage that grows and shrinks by itself on a real Ray cluster, while requests run: none is lost."""

from __future__ import annotations

import asyncio
import random

import pytest

from router.control.cluster import Cluster
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import BUILT_IN_MODEL
from triptych.demo.pictures import draw, random_scene

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

NUM_TOKENS = 8
SCALING = {
    "interval_s": 0.2,
    "start_s": 1.0,
    "smoothing_s": 0.5,
    "down_window_s": 2.0,
    "down_cooldown_s": 0.5,
    # One encoder may be used to a tenth of what it was seen to do: any steady load is too much for it.
    "target_utilization": 0.1,
    "encoder": {"min_actors": 1, "max_actors": 2, "work_per_s": 1.0},
}


def ready(server: RouterServer) -> int:
    return server.controller.counts(StageName.ENCODER).ready


async def test_encoders_go_from_one_to_two_to_one_under_load(ray_cluster: Cluster) -> None:
    from test_ray_system import make_config

    server = RouterServer(make_config(BUILT_IN_MODEL, scaling=SCALING), ray_cluster)
    rng, answers, seen = random.Random("scaling"), [], {1}
    text_only = asyncio.Event()

    async def client_loop(client: AsyncClient) -> None:
        """Asks until the test ends it; every answer must come, whatever the encoders do meanwhile."""
        while True:
            images = [] if text_only.is_set() else [draw(random_scene(rng, 168, 112, 2))]
            answer = await client.ask("Describe it.", images=images, max_tokens=NUM_TOKENS, ignore_eos=True)
            answers.append(len(answer.token_ids))

    async def until_encoders(client: AsyncClient, count: int) -> None:
        async with asyncio.timeout(90.0):
            wanted = 0
            while wanted != count or ready(server) != count:
                await asyncio.sleep(0.05)
                wanted = (await client.topology()).stages[0].wanted_actors
        seen.add(count)

    try:
        async with AsyncClient(await server.start(), timeout_s=60.0) as client:
            clients = [asyncio.create_task(client_loop(client)) for _ in range(4)]
            ended = asyncio.gather(*clients)
            await until_encoders(client, 2)
            num_before = len(answers)
            text_only.set()
            await until_encoders(client, 1)
            assert not ended.done(), "a request failed while actors came and went"
            assert len(answers) > num_before
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            await asyncio.gather(ended, return_exceptions=True)
    finally:
        await server.stop()
    assert seen == {1, 2}
    assert set(answers) == {NUM_TOKENS}
