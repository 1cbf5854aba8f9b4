"""A whole system on this machine under load: `triptych serve` and `triptych bench serve`, as an operator runs them.

`python -m benchmarks.serve_system --model FOLDER --config FILE --out FOLDER [--limit-s 200]` starts the system, sends
each load of the table below, and writes one JSON for each, what the system logged, and `system.json` with the rows that
`benchmarks.report` knows. `--loads` names some of them; `--suffix` is put behind their names where a setting differs.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

_START_TIMEOUT_S = 150.0
# Name, and flags of `triptych bench serve`.
LOADS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("1x720p_alone", ("--num-images", "1", "--num-prompts", "20", "--max-concurrency", "1", "--output-len", "16")),
    (
        "8x1080p_alone",
        ("--num-images", "8", "--image-size", "1920x1080", "--num-prompts", "6", "--max-concurrency", "1"),
    ),
    ("1x720p_16_a_second", ("--num-images", "1", "--num-prompts", "120", "--request-rate", "16")),
    ("1x720p_32_a_second", ("--num-images", "1", "--num-prompts", "200", "--request-rate", "32")),
    (
        "4x720p_8_a_second",
        ("--num-images", "4", "--num-prompts", "60", "--request-rate", "8", "--output-len", "64"),
    ),
    ("1x720p_all_at_once", ("--num-images", "1", "--num-prompts", "256")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit-s", type=float, default=240.0, help="loads that would begin later are left out")
    parser.add_argument("--loads", nargs="*", choices=[name for name, _ in LOADS], default=[name for name, _ in LOADS])
    parser.add_argument("--suffix", default="", help="of the rows' names, where the configuration is not the usual one")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    command = [sys.executable, "-m", "router.cli", "serve", "--model", arguments.model]
    log = arguments.out / "serve.log"
    with log.open("w") as file:
        serve = subprocess.Popen(
            [*command, "--config", str(arguments.config), "--port", "0", "--http-port", "-1", "--actor-logs"],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    summary: dict[str, dict[str, float]] = {}
    try:
        endpoint = _wait_for_endpoint(serve, log)
        summary["system"] = {"start_s": round(time.monotonic() - started_s, 1)}
        for name in arguments.loads:
            if time.monotonic() - started_s > arguments.limit_s:
                break
            summary[name + arguments.suffix] = _send(name, dict(LOADS)[name], endpoint, arguments)
            _write(arguments.out / "system.json", summary)
    finally:
        serve.send_signal(signal.SIGINT)
        try:
            serve.wait(timeout=15)
        except subprocess.TimeoutExpired:
            serve.kill()
    print(json.dumps(summary, indent=1))
    return 0


def _write(path: Path, summary: dict[str, dict[str, float]]) -> None:
    record = {
        "benchmark": "serve_system",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "command": "python -m benchmarks.serve_system --model FOLDER --config FILE --out FOLDER",
        "versions": {name: version(name) for name in ("torch", "ray", "grpcio")},
        "rows": {
            f"system.{load}.{name}": {"median": value}
            for load, figures in summary.items()
            for name, value in figures.items()
        },
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _wait_for_endpoint(serve: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s and serve.poll() is None:
        found = re.search(r"serves .* at \S*?(\d+\.\d+\.\d+\.\d+:\d+)", log.read_text())
        if found:
            return found.group(1)
        time.sleep(0.2)
    raise SystemExit(f"the system did not start:\n{log.read_text()[-4_000:]}")


def _send(name: str, flags: tuple[str, ...], endpoint: str, arguments: argparse.Namespace) -> dict[str, float]:
    out = arguments.out / f"{name}.json"
    command = [sys.executable, "-m", "router.cli", "bench", "serve", "--endpoint", endpoint, "--save-result", str(out)]
    # Each load has a seed of its own: a picture of an earlier one would come from the encoder's cache.
    command += ["--tokenizer", arguments.model, "--seed", str([load for load, _ in LOADS].index(name) + 1)]
    subprocess.run([*command, *flags], check=False, stdout=subprocess.DEVNULL)
    figures = json.loads(out.read_text())["figures"]
    return {
        "completed": figures["num_completed"],
        "failed": figures["num_failed"],
        "requests_s": round(figures["request_throughput"], 2),
        **{
            f"{metric}_p{percent}": round(figures[metric]["percentiles"][percent], 2)
            for metric in ("ttft_ms", "tpot_ms")
            for percent in ("50", "99")
        },
        "encode_p50_ms": round(figures["stages_ms"].get("encode_s", {}).get("percentiles", {}).get("50", 0.0), 2),
        "prefill_p50_ms": round(figures["stages_ms"].get("prefill_s", {}).get("percentiles", {}).get("50", 0.0), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
