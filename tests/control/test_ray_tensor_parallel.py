"""An LLM actor of two processes on a real Ray cluster: one placement group that answers, fails over and ends whole."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from ray.util import placement_group_table

from router.control.cluster import Cluster
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import Answer, AsyncClient
from triptych.config import BUILT_IN_MODEL, DeploymentConfig
from triptych.demo.pictures import Scene, draw, random_scene
from triptych.demo.questions import description, sentence
from triptych.v1 import admin_pb2

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

DEADLINE_S = 60.0
NUM_TOKENS = 100


def make_config() -> DeploymentConfig:
    stage = {"num_cpus": 0.1, "kv_cache_bytes": 4 * 2**20}
    values = {
        "model": {"path": BUILT_IN_MODEL},
        "router": {"port": 0},
        "stages": {"encoder": {"num_cpus": 0.1}, "prefill": stage, "decode": stage | {"tensor_parallel": 2}},
        "transport": {"shared_memory_bytes": 16 * 2**20},
        "control": {"reconcile_interval_s": 0.1, "health_timeout_s": 20.0, "drain_timeout_s": 10.0},
    }
    return DeploymentConfig.from_sources(overrides=values, environment={})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(ray_cluster: Cluster) -> AsyncIterator[RouterServer]:
    server = RouterServer(make_config(), ray_cluster)
    try:
        yield server
    finally:
        await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RouterServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(await server.start(), timeout_s=DEADLINE_S) as client:
        yield client


async def ask(client: AsyncClient, scene: Scene, delay_s: float = 0.0) -> Answer:
    await asyncio.sleep(delay_s)
    return await client.ask("Describe the picture.", images=[draw(scene)], max_tokens=NUM_TOKENS, ignore_eos=True)


def is_right(answer: Answer, scene: Scene) -> bool:
    return answer.text.startswith(sentence(description(scene.shapes)))


async def decode_actor(client: AsyncClient, other_than: str = "") -> admin_pb2.ActorInfo:
    """What the one decode actor says about itself, once it is ready."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for status in (await client.topology()).stages:
                actors = [actor for actor in status.actors if actor.state == admin_pb2.ACTOR_STATE_READY]
                is_wanted = status.stage == StageName.DECODE.to_proto() and len(actors) == 1
                if is_wanted and actors[0].actor_id != other_than:
                    return await client.actor_info(actors[0].actor_id)
            await asyncio.sleep(0.05)


async def num_placement_groups(expected: int) -> int:
    """How many the cluster holds, once that are the expected ones or the time is over."""
    for _ in range(100):
        table: dict[str, Any] = placement_group_table()
        groups = [group for group in table.values() if group["state"] != "REMOVED"]
        if len(groups) == expected:
            break
        await asyncio.sleep(0.1)
    return len(groups)


async def wait_until_ended(process_id: int) -> None:
    deadline_s = asyncio.get_running_loop().time() + DEADLINE_S
    while is_running(process_id):
        assert asyncio.get_running_loop().time() < deadline_s, f"process {process_id} still runs"
        await asyncio.sleep(0.05)


def is_running(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_two_processes_answer_as_one(client: AsyncClient) -> None:
    scene = random_scene(random.Random("two ranks"), 168, 112, 3)
    assert is_right(await ask(client, scene), scene)
    info = await decode_actor(client)
    assert [rank.rank for rank in info.ranks] == [0, 1]
    assert len({rank.process_id for rank in info.ranks}) == 2
    counts = [rank.weights.num_language_parameters for rank in info.ranks]
    assert info.weights.num_language_parameters == sum(counts) and counts[0] == counts[1]
    assert await num_placement_groups(1) == 1


@pytest.mark.parametrize("rank", [1, 0], ids=["follower", "leader"])
async def test_a_killed_process_costs_no_answer_and_its_group_is_replaced(client: AsyncClient, rank: int) -> None:
    rng = random.Random(f"kill {rank}")
    scenes = [random_scene(rng, 168, 112, 1 + n % 4) for n in range(8)]
    before = await decode_actor(client)
    requests = [asyncio.create_task(ask(client, scene, 0.05 * n)) for n, scene in enumerate(scenes)]
    await asyncio.sleep(0.5)
    os.kill(before.ranks[rank].process_id, signal.SIGKILL)
    answers = await asyncio.gather(*requests)
    assert sum(is_right(answer, scene) for answer, scene in zip(answers, scenes, strict=True)) >= len(scenes) - 1
    assert {len(answer.token_ids) for answer in answers} == {NUM_TOKENS}
    assert max(answer.route.attempts for answer in answers) > 1, "the kill came under them"
    after = await decode_actor(client, other_than=before.actor_id)
    assert not {info.process_id for info in before.ranks} & {info.process_id for info in after.ranks}
    for info in before.ranks:
        await wait_until_ended(info.process_id)
    assert await num_placement_groups(1) == 1


async def test_nothing_is_left_of_a_group_that_was_stopped(server: RouterServer, client: AsyncClient) -> None:
    info = await decode_actor(client)
    await server.stop()
    for rank in info.ranks:
        await wait_until_ended(rank.process_id)
    assert await num_placement_groups(0) == 0
