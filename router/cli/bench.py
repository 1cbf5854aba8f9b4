"""`triptych bench serve`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from triptych.bench.backends import BACKENDS, BenchResult, Target
from triptych.bench.figures import SLO_NAMES, figures_of
from triptych.bench.output import run_record, table_lines, write_json, write_plot
from triptych.bench.run import run_load
from triptych.bench.workload import BenchRequest, Workload, WorkloadShape
from triptych.errors import ConfigurationError
from triptych.models_folder import resolve_model_folder

# Warm-up requests come from a seed of their own: none of their pictures may be cached for the run.
_WARM_UP_SEED_OFFSET = 1_000_003
_PROGRESS_LINES = 20


@dataclass(frozen=True)
class BenchOptions:
    """What the flags of `triptych bench serve` say."""

    backend: str
    target: Target
    tokenizer: str
    shape: WorkloadShape
    num_requests: int
    rate: float
    burstiness: float
    max_concurrency: int
    num_warm_up: int
    seed: int
    slo_ms: Mapping[str, float]
    trace: Path | None
    trace_speed: float
    result: Path | None
    plot: Path | None
    with_samples: bool


def run_bench(options: BenchOptions) -> int:
    """Prints the table; returns 1 when a request failed."""
    if options.backend not in BACKENDS:
        raise ConfigurationError(
            f"--backend is {options.backend!r}, expected one of {', '.join(BACKENDS)}", field="backend"
        )
    tokenizer = Tokenizer.from_file(str(resolve_model_folder(options.tokenizer) / "tokenizer.json"))
    requests = _requests(options, tokenizer)
    warm_up = Workload(tokenizer, options.seed + _WARM_UP_SEED_OFFSET).requests(
        options.num_warm_up, options.shape, float("inf"), 1.0
    )
    results = asyncio.run(_run(options, warm_up, requests))
    figures = figures_of(results, options.slo_ms)
    print("\n".join(table_lines(figures)))
    for error in sorted({result.error for result in results if result.error})[:5]:
        print(error, file=sys.stderr)
    described = _described(options)
    if options.result is not None:
        write_json(options.result, run_record(described, figures, results, with_samples=options.with_samples))
    if options.plot is not None:
        write_plot(options.plot, results, f"{options.backend}, {len(requests)} requests at {options.rate:g}/s")
    return 1 if figures.num_failed else 0


def parse_slo(texts: Sequence[str]) -> dict[str, float]:
    """`ttft:300` in milliseconds; raises ConfigurationError saying what was expected."""
    bounds = {}
    for text in texts:
        name, _, bound = text.partition(":")
        try:
            bounds[name] = float(bound)
        except ValueError:
            bounds[name] = -1.0
        if name not in SLO_NAMES or not bounds[name] > 0:
            raise ConfigurationError(
                f"--goodput {text!r}: expected NAME:MILLISECONDS with a name of {', '.join(SLO_NAMES)}", field="goodput"
            )
    return bounds


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`1280x720,640x480`: (width, height) of each; raises ConfigurationError."""
    sizes = []
    for part in text.split(","):
        width, _, height = part.strip().partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise ConfigurationError(f"--image-size {text!r}: expected such as 1280x720,640x480", field="image_size")
        sizes.append((int(width), int(height)))
    return tuple(sizes)


def _requests(options: BenchOptions, tokenizer: Tokenizer) -> list[BenchRequest]:
    workload = Workload(tokenizer, options.seed)
    if options.trace is None:
        return workload.requests(options.num_requests, options.shape, options.rate, options.burstiness)
    return workload.from_trace(options.trace, options.shape, options.num_requests, options.trace_speed)


async def _run(
    options: BenchOptions, warm_up: Sequence[BenchRequest], requests: Sequence[BenchRequest]
) -> list[BenchResult]:
    backend = BACKENDS[options.backend](options.target)
    try:
        if warm_up:
            warm = await run_load(backend, warm_up, max_concurrency=1)
            _check_reachable(warm)
        return await run_load(backend, requests, options.max_concurrency, _Progress(len(requests)))
    finally:
        await backend.close()


def _check_reachable(results: Sequence[BenchResult]) -> None:
    if all(result.error for result in results):
        raise ConfigurationError(f"no warm-up request was answered: {results[0].error}", field="endpoint")


class _Progress:
    """A line on stderr every so many answers."""

    def __init__(self, num_requests: int) -> None:
        self._num_requests = num_requests
        self._step = max(1, num_requests // _PROGRESS_LINES)
        self._num_finished = 0

    def __call__(self, result: BenchResult) -> None:
        self._num_finished += 1
        if self._num_finished % self._step == 0 and sys.stderr.isatty():
            print(f"\r{self._num_finished}/{self._num_requests}", end="", file=sys.stderr, flush=True)


def _described(options: BenchOptions) -> dict[str, Any]:
    """The options for the record; no token, no path."""
    shape = options.shape
    return {
        "backend": options.backend,
        "num_requests": options.num_requests,
        "rate": str(options.rate),
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
        "num_warm_up": options.num_warm_up,
        "seed": options.seed,
        "slo_ms": dict(options.slo_ms),
        "input_tokens": shape.num_input_tokens,
        "output_tokens": shape.num_output_tokens,
        "num_images": shape.num_images,
        "image_sizes": ["x".join(map(str, size)) for size in shape.image_sizes],
        "range_ratio": shape.range_ratio,
        "trace": options.trace.name if options.trace else "",
    }
