"""kill -9 of each stage's process while requests run: every one is answered right, and nothing stays held."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from router.control.cluster import Cluster
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import Answer, AsyncClient
from triptych.config import BUILT_IN_MODEL
from triptych.demo.pictures import Scene, draw, random_scene
from triptych.demo.questions import description, sentence

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

NUM_REQUESTS = 16
DEADLINE_S = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(ray_cluster: Cluster) -> AsyncIterator[AsyncClient]:
    from test_ray_system import make_config

    server = RouterServer(make_config(BUILT_IN_MODEL), ray_cluster)
    try:
        async with AsyncClient(await server.start(), timeout_s=DEADLINE_S) as client:
            yield client
    finally:
        await server.stop()


async def ask(client: AsyncClient, scene: Scene, delay_s: float) -> Answer:
    """What is in a picture that no other request shows; then noise up to a fixed length, so that it takes a while."""
    await asyncio.sleep(delay_s)
    return await client.ask("Describe the picture.", images=[draw(scene)], max_tokens=150, ignore_eos=True)


@pytest.mark.parametrize("stage", [StageName.ENCODER, StageName.PREFILL, StageName.DECODE])
async def test_every_request_is_answered_and_nothing_stays_held(client: AsyncClient, stage: StageName) -> None:
    rng = random.Random(f"kill {stage}")
    scenes = [random_scene(rng, 168, 112, 1 + n % 4) for n in range(NUM_REQUESTS)]
    victim = await ready_actor(client, stage)
    process_id = (await client.actor_info(victim)).process_id
    requests = [asyncio.create_task(ask(client, scene, 0.05 * n)) for n, scene in enumerate(scenes)]
    await asyncio.sleep(0.4)
    os.kill(process_id, signal.SIGKILL)
    answers = await asyncio.gather(*requests)
    truths = [sentence(description(scene.shapes)) for scene in scenes]
    right = [answer.text.startswith(truth) for answer, truth in zip(answers, truths, strict=True)]
    assert sum(right) >= NUM_REQUESTS - 1, "the model itself may be wrong once in a hundred pictures"
    assert {len(answer.token_ids) for answer in answers} == {150}
    assert max(answer.route.attempts for answer in answers) > 1, "the kill came under them"
    await nothing_is_held(client)
    assert await ready_actor(client, stage) != victim


async def ready_actor(client: AsyncClient, stage: StageName) -> str:
    """The one actor of a stage, once it is there and ready."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for status in (await client.topology()).stages:
                if status.stage == stage.to_proto() and len(status.actors) == 1:
                    return str(status.actors[0].actor_id)
            await asyncio.sleep(0.05)


async def nothing_is_held(client: AsyncClient) -> None:
    """Leases, KV pages and patches go to zero on every actor within the time of a lease."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while num_held := await held(client):
        assert asyncio.get_running_loop().time() < deadline, f"{num_held} leases, pages or patches stay held"
        await asyncio.sleep(0.1)


async def held(client: AsyncClient) -> int:
    total = 0
    for status in (await client.topology()).stages:
        for actor in status.actors:
            info = await client.actor_info(actor.actor_id)
            total += info.leases.held_leases + info.leases.pending_tickets
            total += info.language.held_pages + info.language.running_requests + info.encoder.pending_patches
    return total
