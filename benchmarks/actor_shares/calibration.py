"""What one actor gets done under its share, so that a load can be given in actors whatever the machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.actor_shares.actor_shares import ActorShares
from triptych.client import AsyncClient
from triptych.v1 import inference_pb2


async def requests_per_s(
    client: AsyncClient, messages: Sequence[inference_pb2.ChatMessage], max_tokens: int, share: float
) -> float:
    """Of requests that all come at once, with one actor a stage: the stage that they cost most decides.

    The first message warms up. CPU time of an actor that nothing holds back would promise too much: one that runs for a
    few milliseconds at a time finds its caches cold each time.
    """
    async with ActorShares(client, share):
        await client.ask([messages[0]], max_tokens=max_tokens, ignore_eos=True)
        begin_s, later = time.monotonic(), messages[1:]
        await asyncio.gather(*(client.ask([message], max_tokens=max_tokens, ignore_eos=True) for message in later))
        return len(later) / (time.monotonic() - begin_s)
