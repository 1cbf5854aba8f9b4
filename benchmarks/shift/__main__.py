"""Stages that scale by themselves under a load that shifts, beside fixed ones: `python -m benchmarks.shift --seed 1`.

Three runs of the same trace, one after the other, each on fresh actors of the small model: by the policy, fixed at one
actor a stage, fixed at the most that the policy may have. Time and rates are for a machine with two cores: an actor is
to be used to an eighth only, so that three of a stage fit, and a decode actor has room for few answers, as a GPU's
memory would limit it. SLO attainment is by the settings below.
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
from typing import Any

from benchmarks.shift.figures import figures
from benchmarks.shift.run import STAGES, run_trace
from benchmarks.shift.trace import make_trace, phases
from router.control.cluster import Cluster
from triptych.config import DeploymentConfig
from triptych.config.scaling import ScalingSection

MOST = 3
SCALING: dict[str, Any] = {
    "interval_s": 0.5,
    "ttft_s": 0.4,
    "tpot_s": 0.015,
    "target_utilization": 0.125,
    "smoothing_s": 3.0,
    "start_s": 5.0,
    "up_cooldown_s": 3.0,
    "down_cooldown_s": 8.0,
    "down_window_s": 12.0,
}
# Until it was measured: less than any machine does, so that the first seconds of a load are no reason to grow.
FIRST_WORK_PER_S = {"encoder": 20_000.0, "prefill": 10_000.0}
MAX_STREAMS = 3


def configuration(fewest: int, most: int) -> DeploymentConfig:
    """Stages between `fewest` and `most` actors; fixed where these are equal."""
    stage_names = [str(stage) for stage in STAGES]
    bounds: dict[str, dict[str, Any]] = {name: {"min_actors": fewest, "max_actors": most} for name in stage_names}
    for name, work_per_s in FIRST_WORK_PER_S.items():
        bounds[name]["work_per_s"] = work_per_s
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
        },
        environment={},
    )


async def measure(seed: int, scale: float, save: Callable[[dict[str, Any]], None]) -> None:
    """The three runs. Prints and saves each as it ends."""
    shift = phases(scale)
    seconds = sum(phase.seconds for phase in shift)
    trace = make_trace(shift, seed)
    print(f"{len(trace)} requests in {seconds:.0f} s, three times", flush=True)
    rows = {}
    with Cluster.open(configuration(1, MOST)) as cluster:
        for name, fewest, most in (("policy", 1, MOST), ("fixed-1", 1, 1), (f"fixed-{MOST}", MOST, MOST)):
            config = configuration(fewest, most)
            run = await run_trace(config, cluster, trace, seconds)
            rows[name] = row = figures(run, config.scaling)
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
                "settings": ScalingSection(**SCALING).model_dump(),
            },
            "rows": {
                f"shift.{name}": {"median": row["total_actor_seconds"], "samples": [], "details": row}
                for name, row in rows.items()
            },
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    asyncio.run(measure(arguments.seed, arguments.scale, save))


if __name__ == "__main__":
    main()
