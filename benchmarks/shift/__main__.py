"""Stages that scale by themselves under a load that shifts, beside fixed ones: `python -m benchmarks.shift --seed 1`.

Three runs of the same trace, one after the other, each on fresh actors of the small model: by the policy, fixed at one
actor a stage, fixed at the most that the policy may have. An actor is to be a device with a rate of its own: each has a
share of a core, whatever else runs. What one actor a stage gets done is measured first, and sets the rates of the
trace: every phase comes to its height at so many actors of one stage. A decode actor has room for few answers, as a
GPU's memory would limit it. SLO attainment is by the settings below.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.actor_shares.calibration import requests_per_s
from benchmarks.shift.figures import figures
from benchmarks.shift.run import STAGES, TIMEOUT_S, run_trace
from benchmarks.shift.trace import (
    LONG_ANSWERS,
    PICTURE_PATCHES,
    PICTURES,
    REST,
    TEXT,
    make_trace,
    phases,
    some_messages,
)
from router.control.cluster import Cluster
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import DeploymentConfig
from triptych.config.scaling import ScalingSection

MOST = 3
# Of a core, for each actor; and how many actors' work comes at the height of a phase.
SHARE = 0.15
HEIGHT = 1.7
_REST_PER_S = 0.5
_SAMPLES = 2 * 8
SCALING: dict[str, Any] = {
    "interval_s": 1.0,
    "ttft_s": 2.0,
    "tpot_s": 0.08,
    "target_utilization": 0.4,
    "smoothing_s": 1.5,
    "start_s": 4.0,
    "up_cooldown_s": 3.0,
    "down_cooldown_s": 8.0,
    "down_window_s": 10.0,
}
MAX_STREAMS = 8


def configuration(fewest: int, most: int, work_per_s: Mapping[str, float]) -> DeploymentConfig:
    """Stages between `fewest` and `most` actors; fixed where these are equal. work_per_s: of one encoder or prefill
    actor, as an operator has measured it; the policy goes by its own measurements once there are some."""
    stage_names = [str(stage) for stage in STAGES]
    bounds: dict[str, dict[str, Any]] = {name: {"min_actors": fewest, "max_actors": most} for name in stage_names}
    for name, work in work_per_s.items():
        bounds[name]["work_per_s"] = work
    bounds["decode"]["max_streams"] = MAX_STREAMS
    stages: dict[str, dict[str, Any]] = {name: {"replicas": fewest, "num_cpus": 0.1} for name in stage_names}
    stages["decode"]["max_running_requests"] = MAX_STREAMS
    return DeploymentConfig.from_sources(
        overrides={
            "model": {"path": "tiny"},
            "router": {"port": 0, "http_port": -1},
            "stages": stages,
            "scaling": {**SCALING, **bounds},
            # A process that has to wait for a core is not dead.
            "control": {"health_timeout_s": 30.0},
            "defaults": {"timeout_s": TIMEOUT_S},
        },
        environment={},
    )


async def calibrate(cluster: Cluster, seed: int) -> dict[str, float]:
    """Requests a second that one actor of the phase's stage can do, by phase."""
    nothing = phases({TEXT: 1.0, PICTURES: 1.0, LONG_ANSWERS: 1.0, REST: 1.0})
    server, rates = RouterServer(configuration(1, 1, {}), cluster), {}
    try:
        async with AsyncClient(await server.start(), timeout_s=60.0) as client:
            for phase in nothing[:-1]:
                messages = some_messages(phase, _SAMPLES + 1, seed)
                rates[phase.name] = await requests_per_s(client, messages, phase.max_tokens, SHARE)
                print(f"{phase.name:<13} one actor: {rates[phase.name]:.2f} requests a second", flush=True)
    finally:
        await server.stop()
    return rates


async def measure(seed: int, scale: float, names: Sequence[str], save: Callable[[dict[str, Any]], None]) -> None:
    """The runs of these names. Prints and saves each as it ends."""
    rows: dict[str, Any] = {}
    with Cluster.open(configuration(1, MOST, {})) as cluster:
        one_actor = await calibrate(cluster, seed)
        shift = phases({name: HEIGHT * rate for name, rate in one_actor.items()} | {REST: _REST_PER_S}, scale)
        seconds = sum(phase.seconds for phase in shift)
        trace = make_trace(shift, seed)
        rates = ", ".join(f"{phase.name} {phase.requests_per_s:.2f}" for phase in shift)
        print(f"{len(trace)} requests in {seconds:.0f} s; at the height a second: {rates}", flush=True)
        work_per_s = {
            "encoder": one_actor[PICTURES] * PICTURE_PATCHES * shift[1].num_pictures,
            "prefill": one_actor[TEXT] * shift[0].num_words,
        }
        for name, fewest, most in (("policy", 1, MOST), ("fixed-1", 1, 1), (f"fixed-{MOST}", MOST, MOST)):
            if name not in names:
                continue
            config = configuration(fewest, most, work_per_s)
            run = await run_trace(config, cluster, trace, seconds, SHARE)
            rows[name] = row = figures(run, config.scaling)
            row["heights_per_s"] = {phase.name: round(phase.requests_per_s, 3) for phase in shift}
            print_row(name, row)
            save(rows)


def print_row(name: str, row: dict[str, Any]) -> None:
    print(
        f"{name:<8} attained {100 * row['attained']:5.1f} %   actor-s {row['total_actor_seconds']:7.1f}   "
        f"failed {row['num_failed']}   begun again {row['num_begun_again']}   changes {row['num_changes']}   "
        f"flaps {row['num_flaps']}"
    )
    for change in row["changes"]:
        ready = "" if change["ready_s"] is None else f", ready at {change['ready_s']:.1f}"
        print(f"  {change['at_s']:6.1f} s  {change['stage']:<8} {change['before']} -> {change['after']}{ready}")
    for phase, part in row["phases"].items():
        print(
            f"  {phase:<13} {part['num_requests']:4d} requests  attained {100 * part['attained']:5.1f} %  TTFT "
            f"{part['ttft_median_ms']:6.1f} ms, p95 {part['ttft_p95_ms']:7.1f}  TPOT {part['tpot_median_ms']:6.2f} ms",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the phases' lengths")
    parser.add_argument("--only", nargs="+", default=["policy", "fixed-1", f"fixed-{MOST}"], help="runs, by name")
    parser.add_argument("--output", type=Path, help="JSON report")
    arguments = parser.parse_args()

    def save(rows: dict[str, Any]) -> None:
        if not arguments.output:
            return
        report = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "benchmark": "shift",
            "command": f"python -m benchmarks.shift --seed {arguments.seed} --scale {arguments.scale:g}",
            "environment": {
                "machine": platform.machine(),
                "num_cores": os.cpu_count(),
                # Above the number of cores others worked there as well.
                "load_average_1_min": round(os.getloadavg()[0], 2),
                "share_of_a_core": SHARE,
                "height_in_actors": HEIGHT,
                "settings": ScalingSection(**SCALING).model_dump(),
            },
            "rows": {
                f"shift.{name}": {"median": row["total_actor_seconds"], "samples": [], "details": row}
                for name, row in rows.items()
            },
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    asyncio.run(measure(arguments.seed, arguments.scale, arguments.only, save))


if __name__ == "__main__":
    main()
