"""Measures the language engine on one GPU, driven directly, with random weights at true shapes.

`python -m benchmarks.llm_engine --out benchmarks/results/NAME.json [--quick] [--models 3b 7b]`

Each model runs in a process of its own under a time limit, and each row is guarded, so that a failure costs its row
alone. Prompts are unique and random; warm-up runs are off the clock. The file holds versions, GPU, command, date,
commit and raw samples; `python -m benchmarks.report` lays them beside the targets. A short table comes last.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.model_folders import TEXT_SHAPES

MODEL_LIMIT_S = 150.0
REPEATS, QUICK_REPEATS = 5, 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--models", nargs="+", choices=list(TEXT_SHAPES), default=list(TEXT_SHAPES))
    parser.add_argument("--rows", nargs="+", help="only rows with these names")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REPEATS} repetitions instead of {REPEATS}")
    parser.add_argument("--quantization", choices=["none", "fp8"], default="none")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs of this host that share each model")
    parser.add_argument("--profile", action="store_true", help="add the kernels of steps, and the rates of linears")
    parser.add_argument("--limit-s", type=float, default=MODEL_LIMIT_S, help="seconds that one model may take")
    parser.add_argument("--run-model", choices=list(TEXT_SHAPES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_model:
        run_model(arguments.run_model, arguments)
        return 0
    report = {
        "command": ["python", "-m", "benchmarks.llm_engine", *sys.argv[1:]],
        "date": datetime.datetime.now(datetime.UTC).isoformat(),
        "commit": _commit(),
    }
    report |= {"benchmark": "llm_engine", "environment": None, "rows": {}, "errors": {}}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            _merge(report, _run_in_process(model, Path(folder) / f"{model}.json", arguments))
            arguments.out.write_text(json.dumps(report, indent=1))
    _print_table(report)
    return 0


def _run_in_process(model: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.llm_engine", "--run-model", model, "--out", str(out)]
    command += ["--quantization", arguments.quantization]
    command += ["--tensor-parallel", str(arguments.tensor_parallel)]
    command += ["--quick"] if arguments.quick else []
    command += ["--profile"] if arguments.profile else []
    command += ["--rows", *arguments.rows] if arguments.rows else []
    started = time.monotonic()
    try:
        code = subprocess.run(command, timeout=arguments.limit_s, check=False).returncode
        status = "done" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        status = f"stopped after {arguments.limit_s:.0f} s"
    print(f"--- {model}: {status}, {time.monotonic() - started:.0f} s", flush=True)
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": {}, "errors": {}}
    if status != "done":
        report["errors"][f"{model}.process"] = status
    return report


def run_model(name: str, arguments: argparse.Namespace) -> None:
    """All rows of one model; the file is written after each."""
    import logging

    import torch

    from benchmarks.llm_bench.driver import EngineDriver
    from benchmarks.llm_bench.profile import linear_rates, profile_steps
    from benchmarks.llm_bench.rows import ROWS
    from benchmarks.llm_bench.start import environment, measure_group_start, measure_start, section_of

    logging.basicConfig(format="%(relativeCreated)d ms: %(message)s")
    for module in ("kernel_warm_up", "step_choice", "decode_graphs", "prompt_graphs", "fused_runner"):
        logging.getLogger(f"llm_service.{module}").setLevel(logging.DEBUG)
    report: dict[str, Any] = {"environment": environment(), "rows": {}, "errors": {}}
    repeats = QUICK_REPEATS if arguments.quick else REPEATS
    driver: EngineDriver | None = None
    prefix = name if arguments.quantization == "none" else f"{name}_{arguments.quantization}"
    prefix += f"_tp{arguments.tensor_parallel}" if arguments.tensor_parallel > 1 else ""

    def attempt(row: str, measure: Any) -> None:
        started = time.perf_counter()
        try:
            measured = measure()
            report["rows"][f"{prefix}.{row}"] = {
                "median": statistics.median(measured.samples),
                "samples": measured.samples,
                "details": measured.details,
                "seconds": round(time.perf_counter() - started, 2),
            }
        except Exception:
            report["errors"][f"{prefix}.{row}"] = traceback.format_exc()[-2_000:]
        arguments.out.write_text(json.dumps(report))
        print(f"{prefix}.{row}: {time.perf_counter() - started:.1f} s", flush=True)

    def start() -> Any:
        nonlocal driver
        if arguments.tensor_parallel > 1:
            driver, measured = measure_group_start(name, arguments.tensor_parallel)
        else:
            driver, measured = measure_start(name, arguments.quantization)
        return measured

    attempt("start_s", start)
    if driver is None:
        raise SystemExit(report["errors"][f"{prefix}.start_s"])
    for row, measure in ROWS[name].items():
        if not arguments.rows or row in arguments.rows:
            attempt(row, lambda measure=measure: measure(driver, repeats))
    if arguments.profile:
        attempt("profile", lambda: profile_steps(driver))
        attempt("linear_rates", lambda: linear_rates(driver))
    report["environment"]["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    report["environment"]["section"] = json.loads(section_of().model_dump_json())
    arguments.out.write_text(json.dumps(report))
    driver.close()


def _merge(report: dict[str, Any], part: dict[str, Any]) -> None:
    report["environment"] = report["environment"] or part.get("environment")
    report["rows"] |= part["rows"]
    report["errors"] |= part["errors"]


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _print_table(report: dict[str, Any]) -> None:
    print(f"\n{report['environment']}")
    for name, row in report["rows"].items():
        samples = " ".join(f"{sample:.4g}" for sample in row["samples"][:5])
        shown = {} if name.endswith((".profile", ".linear_rates")) else row["details"]
        details = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in shown.items()}
        print(f"{name:<28} {row['median']:>10.5g} | {samples} | {details or ''}")
    for name, error in report["errors"].items():
        print(f"ERROR {name}: {error[-600:]}")


if __name__ == "__main__":
    sys.exit(main())
