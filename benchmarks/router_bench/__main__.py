"""`python -m benchmarks.router_bench`: the router's own cost on this machine, and `--out` as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.router_bench.rows import measure

_MAX_SAMPLES = 200  # of a row, in the file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="router processes, one run for each")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    samples: dict[str, Sequence[float]] = {}
    for num_processes in arguments.processes:
        samples |= measure(arguments.repeats, num_processes)
    for name, values in samples.items():
        print(f"{name:<34}{median(values):>12,.2f}")
    if arguments.out:
        record = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "command": f"python -m benchmarks.router_bench --repeats {arguments.repeats} --processes "
            + " ".join(map(str, arguments.processes)),
            "configuration": "router.processes: 1, with clients on one connection; rows named _N_processes: N, on 16",
            # The benchmark itself is about 2: what is more was others' work on the same cores.
            "load_average": {"before": load_before, "after": os.getloadavg()[0]},
            "machine": f"{os.cpu_count()} CPU cores",
            "versions": {"python": platform.python_version(), "grpcio": version("grpcio")},
            "rows": {
                name: {"median": median(values), "samples": [round(value, 4) for value in values[:_MAX_SAMPLES]]}
                for name, values in samples.items()
            },
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
