"""Times the lanes between two processes of this host: `python -m benchmarks.transport --out FILE [--rows NAME ...]`.

A sample is one fetch by the lane's own code: the call, the bytes and the checks, from the moment a granted tensor is
asked for until it is here. On CPUs: shm, gloo, grpc. With a GPU: cuda_ipc; with two: nccl, also bare (the link alone,
posted and waited for on both ends), its opening and its memory. Rows that this host can't measure are left out. The
file holds versions, command, date, commit and raw samples; `python -m benchmarks.report` lays them beside the targets.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import platform
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.transport_bench.event_loop import run_on_actor_loop
from benchmarks.transport_bench.rows import ROWS, Measure, Measured

_TIMEOUT_S = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="only these")
    parser.add_argument("--repeats", type=int, default=15, help="samples of a row, after two that do not count")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "command": ["python", "-m", "benchmarks.transport", *sys.argv[1:]],
        "date": datetime.datetime.now(datetime.UTC).isoformat(),
        "commit": _commit(),
        "benchmark": "transport",
        "environment": _environment(),
        "rows": {},
        "errors": {},
    }
    for name, (measure, num_gpus) in ROWS.items():
        if arguments.rows and name not in arguments.rows:
            continue
        if torch.cuda.device_count() < num_gpus:
            print(f"transport.{name}: needs {num_gpus} GPUs", flush=True)
            continue
        try:
            measured = run_on_actor_loop(_in_time(measure, arguments.repeats))
            report["rows"][f"transport.{name}"] = _row(measured)
            print(f"transport.{name}: {_row(measured)}", flush=True)
        except Exception:
            report["errors"][f"transport.{name}"] = traceback.format_exc()[-3_000:]
            print(f"ERROR transport.{name}: {traceback.format_exc()[-1_500:]}", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1))
    return 1 if report["errors"] else 0


async def _in_time(measure: Measure, repeats: int) -> Measured:
    return await asyncio.wait_for(measure(repeats), _TIMEOUT_S)


def _row(measured: Measured) -> dict[str, Any]:
    samples = [round(sample, 4) for sample in measured.samples]
    return {"median": sorted(samples)[len(samples) // 2], "samples": samples, "details": measured.details}


def _environment() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_properties(index).name for index in range(torch.cuda.device_count())]
    return {"torch": torch.__version__, "python": platform.python_version(), "gpus": gpus}


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
