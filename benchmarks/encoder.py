"""Measures the encode stage on one GPU, from JPEG bytes to embeddings, with random weights at true shapes.

`python -m benchmarks.encoder --out benchmarks/results/NAME.json [--device cpu --quick] [--rows NAME ...]`

The rows run in a process of their own under a time limit; each is guarded and written when it is there, so that a
failure costs its row alone. Pictures are distinct. The file holds versions, GPU, command, date, commit and raw samples;
`python -m benchmarks.report` lays them beside the targets. A short table comes last.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
REPEATS, QUICK_REPEATS = 7, 2
ROW_PREFIX = "encoder"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--rows", nargs="+", help="only rows with these names, without the prefix")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="shallow tower, small pictures: to see that it runs")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds that all rows may take")
    parser.add_argument("--run-rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_rows:
        run_rows(arguments.run_rows, arguments)
        return 0
    report: dict[str, Any] = {
        "command": ["python", "-m", "benchmarks.encoder", *sys.argv[1:]],
        "date": datetime.datetime.now(datetime.UTC).isoformat(),
        "commit": _commit(),
        "benchmark": "encoder",
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        part, status = _run_in_process(Path(folder) / "rows.json", arguments)
    report |= part
    if status != "done":
        report["errors"]["process"] = status
    arguments.out.write_text(json.dumps(report, indent=1))
    _print_table(report)
    return 1 if report["errors"] else 0


def run_rows(out: Path, arguments: argparse.Namespace) -> None:
    """All rows; `out` is written after each."""
    import torch

    from benchmarks.encoder_bench import rows, stage_rows
    from benchmarks.encoder_bench.bench import EncoderBench

    device = torch.device(arguments.device)
    report: dict[str, Any] = {"environment": _environment(device), "rows": {}, "errors": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = EncoderBench(
            folder=Path(folder) / "model",
            device=device,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            is_quick=arguments.quick,
            repeats=QUICK_REPEATS if arguments.quick else REPEATS,
        )
        started = time.perf_counter()
        engine = bench.engine
        report["environment"]["engine"] = type(engine).__name__
        report["environment"]["engine_s"] = round(time.perf_counter() - started, 2)
        report["environment"]["section"] = json.loads(bench.section.model_dump_json())
        measures = {**rows.ROWS, **stage_rows.ROWS}
        for name, measure in measures.items():
            if arguments.rows and name not in arguments.rows:
                continue
            _attempt(report, f"{ROW_PREFIX}.{name}", lambda measure=measure: measure(bench))
            out.write_text(json.dumps(report))
    if device.type == "cuda":
        report["environment"]["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    out.write_text(json.dumps(report))


def _attempt(report: dict[str, Any], row: str, measure: Any) -> None:
    started = time.perf_counter()
    try:
        measured = measure()
        report["rows"][row] = {
            "median": sorted(measured.samples)[len(measured.samples) // 2],
            "samples": measured.samples,
            "details": measured.details,
            "seconds": round(time.perf_counter() - started, 2),
        }
    except Exception:
        report["errors"][row] = traceback.format_exc()[-3_000:]
    print(f"{row}: {time.perf_counter() - started:.1f} s", flush=True)


def _run_in_process(out: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "benchmarks.encoder", "--out", str(arguments.out), "--run-rows", str(out)]
    command += ["--device", arguments.device]
    command += ["--quick"] if arguments.quick else []
    command += ["--rows", *arguments.rows] if arguments.rows else []
    try:
        code = subprocess.run(command, timeout=arguments.limit_s, check=False).returncode
        status = "done" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        status = f"stopped after {arguments.limit_s:.0f} s"
    part = json.loads(out.read_text()) if out.exists() else {"environment": None, "rows": {}, "errors": {}}
    return part, status


def _environment(device: Any) -> dict[str, Any]:
    import torch

    environment: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type != "cuda":
        return environment | {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    return environment | {"gpu": properties.name, "cuda": torch.version.cuda}


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _print_table(report: Mapping[str, Any]) -> None:
    print(f"\n{report['environment']}")
    for name, row in report["rows"].items():
        samples = " ".join(f"{sample:.4g}" for sample in row["samples"][:7])
        details = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row["details"].items()}
        print(f"{name:<36} {row['median']:>10.5g} | {samples} | {details}")
    for name, error in report["errors"].items():
        print(f"ERROR {name}: {error[-1_500:]}")


if __name__ == "__main__":
    sys.exit(main())
