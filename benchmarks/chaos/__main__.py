"""`python -m benchmarks.chaos --seed 1`: exit status 1 when a request was lost, wrong, or something stays held.

First all plain requests run undisturbed, one system, no kills: those are the answers to hold the others against. Then
everything runs again on another system while a random actor is killed every few seconds. The first run puts nothing in
the caches of the second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from random import Random

from benchmarks.chaos.killer import Killer
from benchmarks.chaos.outcomes import Outcome, summary_lines, verdict
from benchmarks.chaos.requests import ChaosRequest, Fate, make_requests
from benchmarks.chaos.system import ask_all, chaos_config, wait_until_nothing_is_held
from router.control.cluster import Cluster
from router.server import RouterServer
from triptych.client import AsyncClient


async def undisturbed(cluster: Cluster, requests: list[ChaosRequest], arguments: argparse.Namespace) -> list[Outcome]:
    """Every request to its end; the bad ones as they are."""
    calm = [replace(request, fate=Fate.PLAIN, cancel_after_s=0.0, timeout_s=600.0) for request in requests]
    server = RouterServer(chaos_config((1, 1, 1)), cluster)
    try:
        async with AsyncClient(await server.start()) as client:
            return await ask_all(client, calm, arguments.at_once)
    finally:
        await server.stop()


async def disturbed(
    cluster: Cluster, requests: list[ChaosRequest], arguments: argparse.Namespace
) -> tuple[list[Outcome], int, int]:
    """Outcomes, kills, and what stays held."""
    server = RouterServer(chaos_config(arguments.replicas), cluster)
    try:
        async with AsyncClient(await server.start()) as client:
            killer = Killer(client, Random(f"killer {arguments.seed}"), tuple(arguments.interval))
            killing = asyncio.create_task(killer.run())
            outcomes = await ask_all(client, requests, arguments.at_once, arguments.rate)
            killing.cancel()
            return outcomes, killer.num_kills, await wait_until_nothing_is_held(client, timeout_s=120.0)
    finally:
        await server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--at-once", type=int, default=64, help="most requests under way")
    parser.add_argument("--rate", type=float, default=8.0, help="requests that arrive in a second, under the kills")
    parser.add_argument("--replicas", type=int, nargs=3, default=(2, 2, 2), metavar=("E", "P", "D"))
    parser.add_argument("--interval", type=float, nargs=2, default=(3.0, 8.0), metavar=("FROM_S", "TO_S"))
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    requests = make_requests(arguments.requests, arguments.seed)
    started_s = time.monotonic()
    with Cluster.open(chaos_config(arguments.replicas)) as cluster:
        expected = asyncio.run(undisturbed(cluster, requests, arguments))
        calm_s = time.monotonic() - started_s
        outcomes, num_kills, num_held = asyncio.run(disturbed(cluster, requests, arguments))
    verdicts = [verdict(outcome, truth) for outcome, truth in zip(outcomes, expected, strict=True)]
    lines = summary_lines(outcomes, verdicts, num_kills)
    lines.append(f"  {num_held:5d}  leases, pages, patches and requests held afterwards")
    print("\n".join(lines))
    wrong = [
        f"request {outcome.request.number} ({outcome.request.kind}, {outcome.request.fate}): {text}"
        for outcome, text in zip(outcomes, verdicts, strict=True)
        if text.startswith("WRONG")
    ]
    print("\n".join(wrong[:20]), file=sys.stderr)
    if arguments.out:
        record = {
            "date": time.strftime("%Y-%m-%d"),
            "command": f"python -m benchmarks.chaos --seed {arguments.seed} --requests {arguments.requests} "
            f"--rate {arguments.rate:g} --interval {arguments.interval[0]:g} {arguments.interval[1]:g}",
            "versions": {"python": platform.python_version(), **{n: version(n) for n in ("ray", "torch", "grpcio")}},
            "replicas": list(arguments.replicas),
            "seconds": {"undisturbed": round(calm_s, 1), "both": round(time.monotonic() - started_s, 1)},
            "summary": lines,
            "wrong": wrong,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong or num_held else 0


if __name__ == "__main__":
    sys.exit(main())
