"""Real actors in processes of their own, without Ray: lanes between processes are for these."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

from faulty_actors import context

from encoder_service.actor import EncoderActor
from llm_service.actor import LlmActor
from router.control.membership import StageName
from triptych.config import DeploymentConfig
from triptych.switch import SWITCH
from triptych.v1 import admin_pb2


@asynccontextmanager
async def actors_elsewhere(
    config: DeploymentConfig, stages: Sequence[StageName]
) -> AsyncIterator[list[admin_pb2.ActorInfo]]:
    """One actor of each stage, started side by side."""
    processes, connections = [], []
    for stage in stages:
        ours, theirs = context().Pipe()
        processes.append(context().Process(target=run_actor, args=(theirs, config, str(stage)), daemon=True))
        connections.append(ours)
        await asyncio.to_thread(processes[-1].start)
        theirs.close()
    try:
        infos = [await asyncio.to_thread(connection.recv) for connection in connections]
        yield [admin_pb2.ActorInfo.FromString(info) for info in infos]
    finally:
        for process in processes:
            process.kill()
            process.join()


def run_actor(connection: Connection, config: DeploymentConfig, stage: str) -> None:
    """Says its ActorInfo, and serves until it is killed."""
    os.environ[SWITCH] = "1"
    asyncio.run(_serve(connection, config, StageName(stage)))


async def _serve(connection: Connection, config: DeploymentConfig, stage: StageName) -> None:
    actor = EncoderActor(config) if stage is StageName.ENCODER else LlmActor(config, stage)
    connection.send(await actor.start())
    await asyncio.Event().wait()
