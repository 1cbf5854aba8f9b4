"""The controller as an actor of its own: killed under load, left by its router, found by the next one, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import ray
from steady_load import SteadyLoad, until

from router.control.actor_name import CONTROLLER, ActorName
from router.control.cluster import Cluster
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import BUILT_IN_MODEL, DeploymentConfig, Mode
from triptych.errors import ConfigurationError, Unavailable
from triptych.v1 import admin_pb2

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

ENCODER, PREFILL, DECODE = StageName.ENCODER, StageName.PREFILL, StageName.DECODE


def detached_config(namespace: str, **overrides: object) -> DeploymentConfig:
    from test_ray_system import make_config

    config = make_config(BUILT_IN_MODEL, **overrides)
    control = config.control.model_copy(update={"namespace": namespace, "detached": True, "placement_timeout_s": 60.0})
    return config.model_copy(update={"control": control})


def named(namespace: str) -> list[str]:
    """Every named actor of the namespace that has not ended."""
    entries = ray.util.list_named_actors(all_namespaces=True)
    return sorted(entry["name"] for entry in entries if entry["namespace"] == namespace)


def stages_of(names: list[str]) -> list[str]:
    return sorted(parsed.stage for name in names if (parsed := ActorName.parse(name)) is not None)


async def kill_controller(namespace: str) -> int:
    """kill -9; returns the process id that it had."""
    process_id = await controller_process(namespace)
    os.kill(process_id, signal.SIGKILL)
    return process_id


async def controller_process(namespace: str) -> int:
    handle = ray.get_actor(CONTROLLER, namespace=namespace)
    return int(await handle.__ray_call__.remote(lambda actor: os.getpid()))


async def ids(client: AsyncClient) -> dict[int, set[str]]:
    """Ready actors by stage."""
    stages = (await client.topology()).stages
    ready = admin_pb2.ACTOR_STATE_READY
    return {stage.stage: {actor.actor_id for actor in stage.actors if actor.state == ready} for stage in stages}


def ready_ids(server: RouterServer, stage: StageName) -> set[str]:
    """As its router knows them."""
    status = next(status for status in server.controller.topology() if status.stage == stage.to_proto())
    return {actor.actor_id for actor in status.actors if actor.state == admin_pb2.ACTOR_STATE_READY}


async def scale_when_back(client: AsyncClient, stage: StageName, count: int) -> None:
    """As soon as there is a controller again."""
    async with asyncio.timeout(60.0):
        while True:
            try:
                await client.scale(stage, count)
                return
            except Unavailable:
                await asyncio.sleep(0.05)


class Deployment:
    def __init__(self, cluster: Cluster) -> None:
        self.namespace = f"detached-{uuid.uuid4().hex[:8]}"
        self.config = detached_config(self.namespace)
        self.cluster = cluster

    def router(self) -> RouterServer:
        return RouterServer(self.config, self.cluster)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(ray_cluster: Cluster) -> AsyncIterator[Deployment]:
    deployment = Deployment(ray_cluster)
    yield deployment
    await ray_cluster.controller(deployment.config).end()


async def test_a_killed_controller_finds_its_actors_again_and_no_request_is_lost(deployment: Deployment) -> None:
    server, namespace = deployment.router(), deployment.namespace
    try:
        async with AsyncClient(await server.start(), timeout_s=60.0) as client, SteadyLoad(client) as load:
            await load.answers_more(5)
            before = await ids(client)
            killed = await kill_controller(namespace)
            # Requests go on while there is none, and after it came back.
            await load.answers_more(5)
            await scale_when_back(client, ENCODER, 2)
            assert await controller_process(namespace) != killed
            after = await ids(client)
            assert len(after[ENCODER.to_proto()] - before[ENCODER.to_proto()]) == 1
            assert all(after[stage] >= before[stage] for stage in before), "the actors of before go on"
            # What was wanted outlives it too.
            await kill_controller(namespace)
            await scale_when_back(client, DECODE, 1)
            assert await ids(client) == after
            assert stages_of(named(namespace)) == ["decode", "encoder", "encoder", "prefill"]
            await scale_when_back(client, ENCODER, 1)
            await load.answers_more(5)
        load.assert_none_lost()
        assert set(load.attempts) == {1}, "an actor went that should not have"
    finally:
        await server.stop()


async def test_one_killed_while_actors_start_doubles_none_and_leaves_none(deployment: Deployment) -> None:
    server, namespace = deployment.router(), deployment.namespace
    try:
        async with AsyncClient(await server.start(), timeout_s=60.0) as client, SteadyLoad(client) as load:
            await client.scale(ENCODER, 3, wait=False)
            await until(lambda: len(named(namespace)) == 6)
            assert len((await ids(client))[ENCODER.to_proto()]) < 3, "they still start"
            await kill_controller(namespace)
            await scale_when_back(client, ENCODER, 3)
            assert stages_of(named(namespace)) == ["decode", "encoder", "encoder", "encoder", "prefill"]
            await load.answers_more(5)
            # From three to one, with the controller killed while two of them drain.
            await client.scale(ENCODER, 1, wait=False)
            await kill_controller(namespace)
            await scale_when_back(client, ENCODER, 1)
            assert stages_of(named(namespace)) == ["decode", "encoder", "prefill"]
            await load.answers_more(5)
        load.assert_none_lost()
    finally:
        await server.stop()


async def test_a_stage_goes_from_one_to_three_to_one_and_a_lost_actor_is_replaced(deployment: Deployment) -> None:
    server, namespace = deployment.router(), deployment.namespace
    try:
        async with AsyncClient(await server.start(), timeout_s=60.0) as client, SteadyLoad(client) as load:
            await load.answers_more(3)
            await client.scale(DECODE, 3)
            await load.answers_more(10)
            await client.scale(DECODE, 1)
            await load.answers_more(3)
            (last,) = (await ids(client))[DECODE.to_proto()]
            assert set(load.attempts) == {1}, "a drain moved a request"
            os.kill((await client.actor_info(last)).process_id, signal.SIGKILL)
            await until(lambda: bool(present := ready_ids(server, DECODE)) and last not in present)
            await load.answers_more(3)
            assert stages_of(named(namespace)) == ["decode", "encoder", "prefill"]
        load.assert_none_lost()
    finally:
        await server.stop()


async def test_it_lives_on_without_a_router_and_the_next_one_finds_it(deployment: Deployment) -> None:
    namespace, seen = deployment.namespace, []
    for _ in range(2):
        server = deployment.router()
        try:
            async with AsyncClient(await server.start(), timeout_s=60.0) as client:
                seen.append(await ids(client))
        finally:
            await server.stop()
    assert seen[0] == seen[1], "the same actors"
    config = deployment.config.model_copy(update={"mode": Mode.AUTO})
    server = RouterServer(config, deployment.cluster)
    with pytest.raises(ConfigurationError, match=f"namespace '{namespace}' has mode 'disaggregated'"):
        await server.start()
    await server.stop()
    assert stages_of(named(namespace)) == ["decode", "encoder", "prefill"]
    assert await deployment.cluster.controller(deployment.config).end()
    await until(lambda: not named(namespace))
    assert not await deployment.cluster.controller(deployment.config).end(), "there is none to end"
