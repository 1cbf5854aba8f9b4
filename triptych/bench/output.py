"""A run as a table, as JSON and as a plot."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from triptych.bench.backends import BenchResult
from triptych.bench.figures import PERCENTILES, BenchFigures, Distribution, RequestFigures
from triptych.errors import ConfigurationError

_WIDTH = 56
_HEADINGS = {
    "ttft_ms": ("TTFT", "Time to First Token"),
    "tpot_ms": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl_ms": ("ITL", "Inter-token Latency"),
    "e2el_ms": ("E2EL", "End-to-end Latency"),
}


def table_lines(figures: BenchFigures) -> Iterator[str]:
    """The run in the order and words of `vllm bench serve`, with the steps of the walk below."""
    yield " Serving Benchmark Result ".center(_WIDTH, "=")
    yield _line("Successful requests:", figures.num_completed)
    yield _line("Failed requests:", figures.num_failed)
    yield _line("Peak concurrent requests:", figures.max_concurrency)
    yield _line("Benchmark duration (s):", figures.duration_s)
    yield _line("Total input tokens:", figures.num_input_tokens)
    yield _line("Total generated tokens:", figures.num_output_tokens)
    yield _line("Request throughput (req/s):", figures.request_throughput)
    if figures.request_goodput is not None:
        yield _line("Request goodput (req/s):", figures.request_goodput)
    yield _line("Output token throughput (tok/s):", figures.output_throughput)
    yield _line("Total token throughput (tok/s):", figures.total_token_throughput)
    for name, (short, long) in _HEADINGS.items():
        distribution: Distribution = getattr(figures, name)
        yield f" {long} ".center(_WIDTH, "-")
        yield _line(f"Mean {short} (ms):", distribution.mean)
        for percent, value in distribution.percentiles.items():
            yield _line("Median " + short + " (ms):" if percent == 50 else f"P{percent} {short} (ms):", value)
    if figures.stages_ms:
        yield " Steps of the walk, ms: p50 / p90 / p99 ".center(_WIDTH, "-")
        for name, distribution in figures.stages_ms.items():
            values = " / ".join(f"{distribution.percentiles[percent]:.1f}" for percent in PERCENTILES)
            yield f"{name.removesuffix('_s'):<30}{values:>{_WIDTH - 30}}"
    yield "=" * _WIDTH


def run_record(
    options: Mapping[str, Any], figures: BenchFigures, results: Sequence[BenchResult], *, with_samples: bool
) -> dict[str, Any]:
    """The run as JSON values: options, figures, and with `with_samples` every request's times."""
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("triptych", "grpcio")}},
        "options": dict(options),
        "figures": asdict(figures),
        "errors": sorted({result.error for result in results if result.error})[:20],
    }
    if with_samples:
        record["requests"] = [_sample(result) for result in results]
    return record


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_plot(path: Path, results: Sequence[BenchResult], title: str) -> None:
    """TTFT, TPOT and E2E over the time a request was sent, and their cumulative distributions. Format by suffix.

    Raises ConfigurationError when Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigurationError(
            "--plot needs Matplotlib, which is not installed: pip install 'triptych[plot]'", field="plot"
        ) from None
    good = [result for result in results if result.is_ok]
    requests = [RequestFigures.of(result) for result in good]
    start_s = min((result.sent_s for result in results), default=0.0)
    sent = [result.sent_s - start_s for result in good]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    figure.suptitle(title)
    for column, (name, (short, _)) in enumerate(item for item in _HEADINGS.items() if item[0] != "itl_ms"):
        values = [getattr(request, name) for request in requests]
        over_time, cumulative = figure.add_subplot(2, 3, column + 1), figure.add_subplot(2, 3, column + 4)
        over_time.plot(sent, values, ".", markersize=4)
        over_time.set(title=short, xlabel="sent at (s)", ylabel="ms", ylim=(0, None))
        cumulative.plot(sorted(values), [(rank + 1) / len(values) for rank in range(len(values))])
        cumulative.set(xlabel=f"{short} (ms)", ylabel="share of requests", xlim=(0, None), ylim=(0, 1.02))
        for axes in (over_time, cumulative):
            axes.grid(alpha=0.3)
    figure.savefig(path)


def _sample(result: BenchResult) -> dict[str, Any]:
    return {
        "arrival_s": round(result.request.arrival_s, 6),
        "sent_s": round(result.sent_s, 6),
        "token_offsets_ms": [round(1e3 * (time_s - result.sent_s), 3) for time_s in result.token_times],
        "prompt_tokens": result.num_prompt_tokens,
        "output_tokens": result.num_output_tokens,
        "error": result.error,
    }


def _line(name: str, value: float) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<40}{text:>{_WIDTH - 40}}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
