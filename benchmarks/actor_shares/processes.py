"""Which actors of a running system serve."""

from __future__ import annotations

from router.control.membership import StageName
from triptych.client import AsyncClient
from triptych.v1 import admin_pb2


async def ready_actors(client: AsyncClient) -> dict[str, StageName]:
    """By actor id."""
    stages = (await client.topology()).stages
    return {
        actor.actor_id: StageName.from_proto(status.stage)
        for status in stages
        for actor in status.actors
        if actor.state == admin_pb2.ACTOR_STATE_READY
    }
