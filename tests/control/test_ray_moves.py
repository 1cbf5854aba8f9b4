"""Actors on Ray that change their stage while requests run: over gRPC, or with both halves through Ray."""

from __future__ import annotations

import asyncio

import pytest
from PIL import Image

from router.control.cluster import Cluster
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import BUILT_IN_MODEL

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

NUM_TOKENS = 8
ROUNDS = {
    False: (("prefill_decode", "prefill"), ("prefill", "decode"), ("decode", "prefill_decode")),
    True: (("encoder", "prefill_decode"), ("prefill_decode", "encoder")),
}


@pytest.mark.parametrize("has_both_halves", [False, True])
async def test_no_request_notices(ray_cluster: Cluster, has_both_halves: bool) -> None:
    from test_ray_system import make_config

    counts = {"encoder": 1 + has_both_halves, "prefill": 0, "decode": 0, "prefill_decode": 2 - has_both_halves}
    config = make_config(
        BUILT_IN_MODEL,
        stages={stage: {"replicas": count, "num_cpus": 0.1} for stage, count in counts.items()},
        control={"keep_both_halves": has_both_halves},
    )
    server = RouterServer(config, ray_cluster)
    answers: list[int] = []

    async def keep_asking(client: AsyncClient, number: int) -> None:
        while True:
            image = Image.new("RGB", (84, 56), (len(answers) % 256, number, 0))
            answer = await client.ask("Describe it.", images=[image], max_tokens=NUM_TOKENS, ignore_eos=True)
            answers.append(len(answer.token_ids))

    try:
        async with AsyncClient(await server.start(), timeout_s=60.0) as client:
            workers = [asyncio.create_task(keep_asking(client, number)) for number in range(3)]
            for from_stage, to_stage in ROUNDS[has_both_halves]:
                num_before = len(answers)
                async with asyncio.timeout(60):
                    while len(answers) < num_before + 3:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                moved = await client.move(from_stage, to_stage)
                info = await client.actor_info(moved.actor_id)
                assert info.stage == StageName(to_stage).to_proto()
            assert not any(worker.done() for worker in workers), "a request failed while an actor moved"
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            stages = (await client.topology()).stages
            wanted = {str(StageName.from_proto(stage.stage)): stage.wanted_actors for stage in stages}
            assert wanted == counts
    finally:
        await server.stop()
    assert set(answers) == {NUM_TOKENS}
