"""The role policy under the EPD paper's shift test: `python -m benchmarks.role_shift --seed 1 --output FILE`.

Four actors of the small model that can be of any stage, each with its own share of a core as if it were a device: two
encoders, one prefill and one decode actor. One picture a request; 10 requests with answers of 50 tokens, then 90 with
answers of 500. Twice, with the same requests: roles as they are, and the role policy. What one decode actor gets done
is measured first; requests come at the rate that would need so many decode actors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.actor_shares.calibration import requests_per_s
from benchmarks.role_shift.figures import figures, ratios
from benchmarks.role_shift.trace import LONG, MAX_TOKENS, make_message, make_trace
from benchmarks.shift.run import TIMEOUT_S, run_trace
from router.control.cluster import Cluster
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import DeploymentConfig

# Of a core, for each actor; decode actors that the long answers need; answers that one decode actor has room for, as a
# GPU's memory would limit it.
SHARE = 0.2
NUM_NEEDED = 1.8
MAX_STREAMS = 8
# Of the load that the policy sees: a test of two minutes has no time for the default of ten seconds.
SMOOTHING_S = 3.0


def configuration(role_policy: str) -> DeploymentConfig:
    """Two encoders, one prefill, one decode actor, each with both halves of the model."""
    counts = {"encoder": 2, "prefill": 1, "decode": 1}
    stages: dict[str, dict[str, Any]] = {name: {"replicas": count, "num_cpus": 0.1} for name, count in counts.items()}
    for name in ("prefill", "decode"):
        stages[name]["max_running_requests"] = MAX_STREAMS
    return DeploymentConfig.from_sources(
        overrides={
            "model": {"path": "tiny"},
            "router": {"port": 0, "http_port": -1},
            "stages": stages,
            "scaling": {
                "smoothing_s": SMOOTHING_S,
                "decode": {"max_streams": MAX_STREAMS},
                "roles": {"policy": role_policy},
            },
            # A process that has to wait for a core is not dead.
            "control": {"keep_both_halves": True, "health_timeout_s": 30.0},
            "defaults": {"timeout_s": TIMEOUT_S},
        },
        environment={},
    )


async def long_answers_per_s(cluster: Cluster, seed: int) -> float:
    """That one decode actor can do."""
    server = RouterServer(configuration("fixed"), cluster)
    random = Random(f"others {seed}")
    try:
        async with AsyncClient(await server.start(), timeout_s=TIMEOUT_S) as client:
            messages = [make_message(random) for _ in range(2 * MAX_STREAMS + 1)]
            rate = await requests_per_s(client, messages, MAX_TOKENS[LONG], SHARE)
    finally:
        await server.stop()
    print(f"one decode actor: {rate:.3f} long answers a second", flush=True)
    return rate


async def measure(seed: int, save: Callable[[dict[str, Any]], None]) -> None:
    """Both runs, and how they compare."""
    rows: dict[str, Any] = {}
    with Cluster.open(configuration("fixed")) as cluster:
        requests_per_s = NUM_NEEDED * await long_answers_per_s(cluster, seed)
        trace = make_trace(requests_per_s, seed)
        print(f"{len(trace)} requests, {requests_per_s:.2f} a second, twice", flush=True)
        for name, policy in (("static", "fixed"), ("policy", "balance")):
            run = await run_trace(configuration(policy), cluster, trace, trace[-1].at_s, SHARE)
            rows[name] = row = figures(run)
            print_row(name, row)
            save({"requests_per_s": round(requests_per_s, 3), **rows})
    rows["ratio"] = ratios(rows["static"], rows["policy"])
    print("static by policy: " + "   ".join(f"{name} {ratio:.2f}" for name, ratio in rows["ratio"].items()))
    save({"requests_per_s": round(requests_per_s, 3), **rows})


def print_row(name: str, row: dict[str, Any]) -> None:
    print(
        f"{name:<7} failed {row['num_failed']} {row['errors'] or ''}   begun again {row['num_begun_again']}   latency "
        f"{row['latency_median_s']:.1f} s, mean {row['latency_mean_s']:.1f}   TTFT {row['ttft_median_s']:.2f} s   TPOT "
        f"{row['tpot_median_ms']:.1f} ms, mean {row['tpot_mean_ms']:.1f}   all done after {row['seconds']:.0f} s"
    )
    for move in row["moves"]:
        print(f"  {move['at_s']:6.1f} s  {move['from']} -> {move['to']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON report")
    arguments = parser.parse_args()

    def save(rows: dict[str, Any]) -> None:
        if not arguments.output:
            return
        report = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "benchmark": "role_shift",
            "command": f"python -m benchmarks.role_shift --seed {arguments.seed}",
            "environment": {
                "machine": platform.machine(),
                "num_cores": os.cpu_count(),
                # Above the number of cores others worked there as well.
                "load_average_1_min": round(os.getloadavg()[0], 2),
                "share_of_a_core": SHARE,
                "requests_per_s": rows["requests_per_s"],
                "roles": configuration("balance").scaling.roles.model_dump(),
            },
            "rows": {
                f"role_shift.{name}": {"median": row["latency_median_s"], "samples": [], "details": row}
                for name, row in rows.items()
                if name != "requests_per_s"
            },
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    asyncio.run(measure(arguments.seed, save))


if __name__ == "__main__":
    main()
