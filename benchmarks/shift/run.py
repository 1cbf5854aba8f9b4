"""One run of the trace on real actors: what became of every request, and how many actors there were when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.actor_shares.actor_shares import ActorShares
from benchmarks.shift.trace import ShiftRequest
from router.control.cluster import Cluster
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import DeploymentConfig
from triptych.errors import TriptychError

STAGES = (StageName.ENCODER, StageName.PREFILL, StageName.DECODE)
_LOOK_S = 0.1
# Longer than any queue here.
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Served:
    """One request. tpot_s: None for an answer of one token; error: its class, empty when it was answered."""

    phase: str
    at_s: float
    ttft_s: float = 0.0
    tpot_s: float | None = None
    attempts: int = 0
    error: str = ""
    total_s: float = 0.0


@dataclass(frozen=True)
class Change:
    """The policy wants another number of actors. ready_s: when they were there; None for fewer, or never."""

    at_s: float
    stage: StageName
    before: int
    after: int
    ready_s: float | None = None


@dataclass
class Run:
    """Times count from the first second of the trace. actor_seconds: of actors that start, work or drain."""

    served: list[Served] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    actor_seconds: dict[StageName, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    seconds: float = 0.0


async def run_trace(
    config: DeploymentConfig, cluster: Cluster, trace: Sequence[ShiftRequest], seconds: float, share: float
) -> Run:
    """Brings the system up, sends the trace as it is timed, and takes it down. share: of a core, for each actor."""
    server, run = RouterServer(config, cluster), Run()
    try:
        async with AsyncClient(await server.start(), timeout_s=TIMEOUT_S) as client, ActorShares(client, share):
            await client.ask("Warm up.", max_tokens=2)
            begin_s = time.monotonic()
            watching = asyncio.create_task(_watch(server, run, begin_s))
            run.served = await asyncio.gather(*(_serve(client, request, begin_s) for request in trace))
            await asyncio.sleep(max(0.0, begin_s + seconds - time.monotonic()))
            run.seconds = time.monotonic() - begin_s
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    finally:
        await server.stop()
    return run


async def _serve(client: AsyncClient, request: ShiftRequest, begin_s: float) -> Served:
    await asyncio.sleep(begin_s + request.at_s - time.monotonic())
    try:
        answer = await client.ask([request.message], max_tokens=request.max_tokens, ignore_eos=True)
    except TriptychError as error:
        return Served(request.phase, request.at_s, error=type(error).__name__)
    timings, num_later = answer.timings, len(answer.token_ids) - 1
    stream_s = timings.total_s - timings.time_to_first_token_s
    return Served(
        request.phase,
        request.at_s,
        timings.time_to_first_token_s,
        stream_s / num_later if num_later > 0 else None,
        answer.route.attempts,
        total_s=timings.total_s,
    )


async def _watch(server: RouterServer, run: Run, begin_s: float) -> None:
    """Adds up actor-seconds, and notes every change of what is wanted."""
    wanted = {stage: server.controller.counts(stage).wanted for stage in STAGES}
    seen_s = time.monotonic()
    while True:
        await asyncio.sleep(_LOOK_S)
        now_s = time.monotonic()
        for stage in STAGES:
            counts = server.controller.counts(stage)
            run.actor_seconds[stage] += (now_s - seen_s) * (counts.starting + counts.ready + counts.draining)
            if counts.wanted != wanted[stage]:
                run.changes.append(Change(now_s - begin_s, stage, wanted[stage], counts.wanted))
                wanted[stage] = counts.wanted
            run.changes = [_with_ready(change, stage, counts.ready, now_s - begin_s) for change in run.changes]
        seen_s = now_s


def _with_ready(change: Change, stage: StageName, num_ready: int, now_s: float) -> Change:
    is_open = change.stage is stage and change.ready_s is None and change.after > change.before
    if not is_open or num_ready < change.after:
        return change
    return Change(change.at_s, stage, change.before, change.after, now_s)
