"""Which process each actor of a running system is, and what CPU time its stage has used."""

from __future__ import annotations

from collections import Counter

from benchmarks.actor_shares.governor import cpu_s
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


async def stage_cpu_s(client: AsyncClient) -> Counter[StageName]:
    """CPU time of the ready actors of each stage in their lives, in seconds. The actors are of this machine."""
    used: Counter[StageName] = Counter()
    for actor_id, stage in (await ready_actors(client)).items():
        used[stage] += cpu_s((await client.actor_info(actor_id)).process_id)  # type: ignore[assignment]
    return used
