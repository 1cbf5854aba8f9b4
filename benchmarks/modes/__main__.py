"""`python -m benchmarks.modes --out FILE`: modes colocated, disaggregated and auto, paired in one run.

All three systems stand ready at once; each round gives every mode the same requests in turn, in changing order, so that
whatever else the machine does falls on all of them. Printed is, for each number of pictures, the median over the rounds
of TTFT and throughput, and auto's ratio to the better of the other two, the median of the rounds' own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tokenizers import Tokenizer

from router.control.cluster import Cluster
from router.server import RouterServer
from triptych.bench.backends import Backend, GrpcBackend, Target
from triptych.bench.figures import figures_of
from triptych.bench.run import run_load
from triptych.bench.workload import Workload, WorkloadShape
from triptych.config import DeploymentConfig
from triptych.models_folder import BUILT_IN_FOLDER

MODES = ("colocated", "disaggregated", "auto")
PICTURES = (0, 1, 4)
_SIZES = ((112, 112), (140, 112), (168, 140))


@dataclass(frozen=True)
class Sample:
    """One round of one mode: median TTFT, and requests a second."""

    ttft_ms: float
    requests_s: float


def mode_config(mode: str) -> DeploymentConfig:
    stages: dict[str, object] = {"prefill_decode": {"replicas": 1, "num_cpus": 0.1}}
    if mode != "colocated":
        stages |= {
            "encoder": {"replicas": 1, "num_cpus": 0.1},
            "prefill": {"replicas": 0},
            "decode": {"replicas": 0},
        }
    values = {
        "mode": mode,
        "stages": stages,
        "router": {"port": 0, "http_port": -1},
        "control": {"namespace": f"modes-{mode}"},
    }
    return DeploymentConfig.from_sources(overrides=values, environment={})


async def measure(cluster: Cluster, arguments: argparse.Namespace) -> dict[str, dict[str, list[Sample]]]:
    """Samples by number of pictures, then by mode."""
    workload = Workload(Tokenizer.from_file(str(BUILT_IN_FOLDER / "tokenizer.json")), arguments.seed)
    async with AsyncExitStack() as stack:
        backends: dict[str, Backend] = {}
        for mode in MODES:
            server = RouterServer(mode_config(mode), cluster)
            stack.push_async_callback(server.stop)
            target = Target(await server.start(), "", "tiny", 120.0, ignore_eos=True, temperature=0.0)
            backends[mode] = backend = GrpcBackend(target)
            stack.push_async_callback(backend.close)
        samples: dict[str, dict[str, list[Sample]]] = {str(n): {mode: [] for mode in MODES} for n in PICTURES}
        for number in range(arguments.rounds + arguments.warm_up):
            for num_pictures in PICTURES:
                for offset in range(len(MODES)):
                    mode = MODES[(number + offset) % len(MODES)]
                    sample = await _round(backends[mode], workload, num_pictures, arguments)
                    if number >= arguments.warm_up:
                        samples[str(num_pictures)][mode].append(sample)
        return samples


async def _round(backend: Backend, workload: Workload, num_pictures: int, arguments: argparse.Namespace) -> Sample:
    """New pictures every time: nothing comes from a cache."""
    shape = WorkloadShape(16, arguments.output_len, num_pictures, _SIZES)
    requests = workload.requests(arguments.requests, shape, float("inf"), 1.0)
    figures = figures_of(await run_load(backend, requests, arguments.at_once), {})
    if figures.num_failed:
        raise RuntimeError(f"{figures.num_failed} requests failed")
    return Sample(figures.ttft_ms.percentiles[50], figures.request_throughput)


def ratios(by_mode: dict[str, list[Sample]]) -> tuple[float, float]:
    """Auto's TTFT and throughput by those of the better of the other two; above 1 is worse and better.

    The better one is that of the better median; the ratio to it is the median of the ratios within each round: other
    work on the machine comes and goes, and slows the modes of one round alike.
    """
    others = [mode for mode in MODES if mode != "auto"]
    quicker = min(others, key=lambda mode: median(sample.ttft_ms for sample in by_mode[mode]))
    faster = max(others, key=lambda mode: median(sample.requests_s for sample in by_mode[mode]))
    return (
        median(auto.ttft_ms / other.ttft_ms for auto, other in zip(by_mode["auto"], by_mode[quicker], strict=True)),
        median(
            auto.requests_s / other.requests_s for auto, other in zip(by_mode["auto"], by_mode[faster], strict=True)
        ),
    )


def table_lines(samples: dict[str, dict[str, list[Sample]]]) -> Sequence[str]:
    lines = [f"{'pictures':>8} {'mode':<14} {'TTFT p50, ms':>12} {'requests/s':>11}"]
    for num_pictures, by_mode in samples.items():
        for mode, mode_samples in by_mode.items():
            ttft_ms = median(sample.ttft_ms for sample in mode_samples)
            requests_s = median(sample.requests_s for sample in mode_samples)
            lines.append(f"{num_pictures:>8} {mode:<14} {ttft_ms:>12.1f} {requests_s:>11.2f}")
        slower, faster = ratios(by_mode)
        lines.append(f"{num_pictures:>8} auto / better   {slower:>11.3f} {faster:>11.3f}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--requests", type=int, default=24, help="of one round of one mode")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--output-len", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    with Cluster.open(mode_config("auto")) as cluster:
        samples = asyncio.run(measure(cluster, arguments))
    print("\n".join(table_lines(samples)))
    if arguments.out:
        rows = {}
        for num_pictures, by_mode in samples.items():
            slower, faster = ratios(by_mode)
            rows[f"router.auto_ttft_{num_pictures}"] = {"median": slower}
            rows[f"router.auto_rate_{num_pictures}"] = {"median": faster}
        record = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "command": f"python -m benchmarks.modes --rounds {arguments.rounds} --at-once {arguments.at_once}",
            # The benchmark itself is about 3: what is more was others' work on the same cores.
            "load_average": {"before": load_before, "after": os.getloadavg()[0]},
            "machine": f"{os.cpu_count()} CPU cores",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "ray")}},
            "rows": rows,
            "samples": {
                count: {mode: [vars(sample) for sample in found] for mode, found in by_mode.items()}
                for count, by_mode in samples.items()
            },
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
