"""The system under test: real actors on a local Ray cluster, and what they still hold afterwards."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from benchmarks.chaos.outcomes import Outcome
from benchmarks.chaos.requests import ChaosRequest
from triptych.client import AsyncClient
from triptych.config import DeploymentConfig
from triptych.errors import TriptychError


def chaos_config(replicas: Sequence[int]) -> DeploymentConfig:
    """The small model with `replicas` of encoder, prefill and decode."""
    stages = dict(zip(("encoder", "prefill", "decode"), replicas, strict=True))
    return DeploymentConfig.from_sources(
        overrides={
            "model": {"path": "tiny"},
            "stages": {stage: {"replicas": count, "num_cpus": 0.1} for stage, count in stages.items()},
            "router": {"port": 0, "http_port": -1, "max_attempts": 12},
            "limits": {"max_pending_requests": 2_048},
        },
        environment={},
    )


async def ask_all(
    client: AsyncClient, requests: Sequence[ChaosRequest], max_at_once: int, rate: float = math.inf
) -> list[Outcome]:
    """Outcomes in the order of the requests, of which `rate` arrive in a second."""
    turns = asyncio.Semaphore(max_at_once)

    async def ask_in_turn(request: ChaosRequest) -> Outcome:
        await asyncio.sleep(request.number / rate)
        async with turns:
            return await _ask(client, request)

    return await asyncio.gather(*(ask_in_turn(request) for request in requests))


async def _ask(client: AsyncClient, request: ChaosRequest) -> Outcome:
    started_s = time.monotonic()
    stream = client.stream(request.messages, timeout_s=request.timeout_s, **request.sampling)  # type: ignore[arg-type]
    texts: list[str] = []
    token_ids: tuple[int, ...] = ()
    error: TriptychError | None = None
    attempts, is_cancelled = 1, False
    try:
        async with asyncio.timeout(request.cancel_after_s or None):
            async for text in stream:
                texts.append(text)
            answer = await stream.answer()
            token_ids, attempts = answer.token_ids, answer.route.attempts
    except TimeoutError:
        is_cancelled = True
        stream.cancel()
    except TriptychError as failure:
        error = failure
    return Outcome(request, token_ids, "".join(texts), error, attempts, time.monotonic() - started_s, is_cancelled)


async def wait_until_nothing_is_held(client: AsyncClient, timeout_s: float) -> int:
    """What stays held after that time: leases, KV pages, patches, running requests; 0 as soon as there is nothing."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        num_held = await _num_held(client)
        if not num_held or time.monotonic() >= deadline_s:
            return num_held
        await asyncio.sleep(0.5)


async def _num_held(client: AsyncClient) -> int:
    total = 0
    for stage in (await client.topology()).stages:
        for actor in stage.actors:
            try:
                info = await client.actor_info(actor.actor_id)
            except TriptychError:
                total += 1  # Not there yet: what it holds can't be told.
                continue
            total += info.leases.held_leases + info.leases.pending_tickets
            total += info.language.held_pages + info.language.running_requests + info.encoder.pending_patches
    return total
