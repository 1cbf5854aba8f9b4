"""The whole system on a real Ray cluster: start, answer, scale, loss of a process, both modes."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from PIL import Image

from router.control.cluster import Cluster
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import Answer, AsyncAnswerStream, AsyncClient
from triptych.config import DeploymentConfig
from triptych.errors import InvalidRequest, ModelError
from triptych.v1 import admin_pb2

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

QUESTION = "What is in the picture?"
NUM_TOKENS = 12


def make_config(model: Path | str, **overrides: Any) -> DeploymentConfig:
    stage = {"num_cpus": 0.1, "kv_cache_bytes": 4 * 2**20}
    values = {
        "model": {"path": str(model)},
        "router": {"port": 0, "http_port": 0},
        "stages": {"encoder": {"num_cpus": 0.1}, "prefill": stage, "decode": stage},
        "transport": {"shared_memory_bytes": 16 * 2**20},
        "control": {"reconcile_interval_s": 0.1, "health_timeout_s": 20.0, "drain_timeout_s": 10.0},
    }
    return DeploymentConfig.from_sources(overrides=values | overrides, environment={})


class System:
    def __init__(self, server: RouterServer, client: AsyncClient) -> None:
        self.server = server
        self.client = client

    async def ids(self, stage: StageName) -> list[str]:
        """Ids of the ready actors of a stage."""
        for status in (await self.client.topology()).stages:
            if status.stage == stage.to_proto():
                return [actor.actor_id for actor in status.actors if actor.state == admin_pb2.ACTOR_STATE_READY]
        raise AssertionError(f"no stage {stage}")

    async def wait_for_another(self, stage: StageName, actor_id: str) -> None:
        """Returns when the stage has one ready actor, and that is not `actor_id`."""
        async with asyncio.timeout(60.0):
            ids = await self.ids(stage)
            while len(ids) != 1 or actor_id in ids:
                await asyncio.sleep(0.05)
                ids = await self.ids(stage)

    async def ask(self) -> Answer:
        picture = Image.effect_mandelbrot((112, 84), (-2.0, -1.5, 1.0, 1.5), 20).convert("RGB")
        return await self.client.ask(QUESTION, images=[picture], max_tokens=NUM_TOKENS, ignore_eos=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(ray_cluster: Cluster, random_model_folder: Path) -> AsyncIterator[System]:
    server = RouterServer(make_config(random_model_folder), ray_cluster)
    try:
        endpoint = await server.start()
        async with AsyncClient(endpoint, timeout_s=60.0) as client:
            yield System(server, client)
    finally:
        await server.stop()


async def test_three_stages_answer_a_picture_and_hold_what_they_should(system: System) -> None:
    answer = await system.ask()
    assert len(answer.token_ids) == NUM_TOKENS
    route = answer.route
    encoder = await system.client.actor_info(route.encoder_actors[0])
    prefill = await system.client.actor_info(route.prefill_actor)
    decode = await system.client.actor_info(route.decode_actor)
    assert encoder.encoder.accepted_items == 1
    assert len({encoder.process_id, prefill.process_id, decode.process_id, os.getpid()}) == 4
    assert encoder.weights.num_language_parameters == 0 and encoder.weights.num_visual_parameters > 0
    for info in (prefill, decode):
        assert info.multimodal_disaggregated
        assert info.weights.num_visual_parameters == 0 and info.weights.num_language_parameters > 0
    assert set(route.embedding_lanes) <= {"shm", "grpc"} and route.kv_lane in ("shm", "grpc")


async def test_the_http_port_answers_too(system: System) -> None:
    picture = Image.effect_mandelbrot((112, 84), (-2.0, -1.5, 1.0, 1.5), 20).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": NUM_TOKENS, "ignore_eos": True}
    async with httpx2.AsyncClient(base_url=system.server.http_endpoint, timeout=60.0, trust_env=False) as client:
        assert (await client.get("/ready")).status_code == 200
        answer = (await client.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"]["content"] == (await system.ask()).text
    assert answer["usage"]["completion_tokens"] == NUM_TOKENS


async def test_scale_up_and_down_while_it_runs(system: System) -> None:
    before = await system.ids(StageName.ENCODER)
    status = await system.client.scale("encoder", 2)
    assert len(await system.ids(StageName.ENCODER)) == 2 == len(status.actors)
    await system.client.scale("encoder", 1)
    assert await system.ids(StageName.ENCODER) == before
    with pytest.raises(InvalidRequest, match="expected at least 1"):
        await system.client.scale("encoder", 0)


@pytest.mark.parametrize("stage", [StageName.ENCODER, StageName.PREFILL, StageName.DECODE])
async def test_a_killed_process_is_replaced_and_answers_stay_the_same(system: System, stage: StageName) -> None:
    before = await system.ask()
    (killed,) = await system.ids(stage)
    os.kill((await system.client.actor_info(killed)).process_id, signal.SIGKILL)
    await system.wait_for_another(stage, killed)
    after = await system.ask()
    assert after.token_ids == before.token_ids
    assert killed not in (*after.route.encoder_actors, after.route.prefill_actor, after.route.decode_actor)


async def test_requests_under_way_survive_the_loss_of_the_decode_actor(system: System) -> None:
    expected = await system.client.ask("count", max_tokens=200, ignore_eos=True)
    (killed,) = await system.ids(StageName.DECODE)
    process_id = (await system.client.actor_info(killed)).process_id
    stream = system.client.stream("count", max_tokens=200, ignore_eos=True)
    pieces = aiter(stream)
    await anext(pieces)
    os.kill(process_id, signal.SIGKILL)
    answer = await finish(pieces, stream)
    assert answer.token_ids == expected.token_ids
    assert answer.route.decode_actor != killed


async def test_an_actor_taken_away_finishes_its_requests(system: System) -> None:
    await system.client.scale("decode", 2)
    streams = [system.client.stream(f"count {n}", max_tokens=300, ignore_eos=True) for n in range(4)]
    pieces = [aiter(stream) for stream in streams]
    await asyncio.gather(*(anext(piece) for piece in pieces))
    status, *answers = await asyncio.gather(
        system.client.scale("decode", 1),
        *(finish(piece, stream) for piece, stream in zip(pieces, streams, strict=True)),
    )
    assert len(status.actors) == 1
    assert {len(answer.token_ids) for answer in answers} == {300}
    assert {answer.route.attempts for answer in answers} == {1}, "none had to begin again"
    assert len({answer.route.decode_actor for answer in answers}) == 2, "one of them on the actor taken away"


async def finish(pieces: AsyncIterator[str], stream: AsyncAnswerStream) -> Answer:
    async for _ in pieces:
        pass
    return await stream.answer()


async def test_colocated_answers_the_same(system: System, ray_cluster: Cluster, random_model_folder: Path) -> None:
    expected = await system.ask()
    server = RouterServer(make_config(random_model_folder, mode="colocated"), ray_cluster)
    try:
        async with AsyncClient(await server.start(), timeout_s=60.0) as client:
            answer = await System(server, client).ask()
            info = await client.actor_info(answer.route.decode_actor)
    finally:
        await server.stop()
    assert answer.token_ids == expected.token_ids
    assert not info.multimodal_disaggregated
    assert info.weights.num_visual_parameters > 0 and info.weights.num_language_parameters > 0


@pytest.fixture
def broken_model_folder(random_model_folder: Path, tmp_path: Path) -> Path:
    """Whole enough for the router; the actors find no weights."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in random_model_folder.iterdir():
        (folder / file.name).write_bytes(b"" if file.suffix == ".safetensors" else file.read_bytes())
    return folder


async def test_what_an_actor_can_not_load_is_told_once_and_leaves_nothing(
    ray_cluster: Cluster, broken_model_folder: Path
) -> None:
    server = RouterServer(make_config(broken_model_folder), ray_cluster)
    try:
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            await server.start()
    finally:
        await server.stop()
    assert all(not stage.actors for stage in server.controller.topology())
