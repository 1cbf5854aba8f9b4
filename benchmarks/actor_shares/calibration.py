"""What requests cost each stage, so that a load can be given in actors whatever the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.actor_shares.processes import stage_cpu_s
from router.control.membership import StageName
from triptych.client import AsyncClient
from triptych.v1 import inference_pb2


async def cpu_s_per_request(
    client: AsyncClient, messages: Sequence[inference_pb2.ChatMessage], max_tokens: int, num_at_once: int
) -> dict[StageName, float]:
    """CPU time of one request in each stage, when `num_at_once` run together. The first message warms up."""
    await client.ask([messages[0]], max_tokens=max_tokens, ignore_eos=True)
    before, later = await stage_cpu_s(client), messages[1:]
    for begin in range(0, len(later), num_at_once):
        some = later[begin : begin + num_at_once]
        await asyncio.gather(*(client.ask([message], max_tokens=max_tokens, ignore_eos=True) for message in some))
    after = await stage_cpu_s(client)
    return {stage: (after[stage] - before[stage]) / len(later) for stage in after}
