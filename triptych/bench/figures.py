"""TTFT, TPOT, ITL, E2E and goodput out of what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

from triptych.bench.backends import BenchResult

PERCENTILES = (50, 90, 99)
# What an SLO may bound, in milliseconds a request.
SLO_NAMES = ("ttft", "tpot", "e2el")


@dataclass(frozen=True)
class RequestFigures:
    """Milliseconds of one finished request.

    ttft_ms: sent to first token. tpot_ms: (last token - first) / (tokens - 1), 0 for one token. itl_ms: between
    neighbouring chunks. e2el_ms: sent to last token.
    """

    ttft_ms: float
    tpot_ms: float
    itl_ms: tuple[float, ...]
    e2el_ms: float

    @classmethod
    def of(cls, result: BenchResult) -> RequestFigures:
        first_s, last_s = result.token_times[0], result.token_times[-1]
        num_gaps = max(result.num_output_tokens - 1, 1)
        return cls(
            ttft_ms=1e3 * (first_s - result.sent_s),
            tpot_ms=1e3 * (last_s - first_s) / num_gaps,
            itl_ms=tuple(1e3 * (later - earlier) for earlier, later in pairwise(result.token_times)),
            e2el_ms=1e3 * (last_s - result.sent_s),
        )

    def meets(self, slo_ms: Mapping[str, float]) -> bool:
        return all(getattr(self, f"{name}_ms") <= bound for name, bound in slo_ms.items())


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles by linear interpolation, as numpy's default."""

    mean: float
    percentiles: Mapping[int, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        ordered = sorted(values)
        if not ordered:
            return cls(0.0, dict.fromkeys(PERCENTILES, 0.0))
        return cls(fmean(ordered), {percent: _percentile(ordered, percent) for percent in PERCENTILES})


@dataclass(frozen=True)
class BenchFigures:
    """One run. Rates are by the second of `duration_s`, first request sent to last answer finished; distributions in
    milliseconds. stages: milliseconds by step of the walk, as the server reports them."""

    duration_s: float
    num_completed: int
    num_failed: int
    num_input_tokens: int
    num_output_tokens: int
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_concurrency: int
    ttft_ms: Distribution
    tpot_ms: Distribution
    itl_ms: Distribution
    e2el_ms: Distribution
    stages_ms: Mapping[str, Distribution] = field(default_factory=dict)


def figures_of(results: Sequence[BenchResult], slo_ms: Mapping[str, float]) -> BenchFigures:
    """slo_ms: bound in milliseconds by name (ttft, tpot, e2el); goodput counts the requests that meet all of them."""
    good = [result for result in results if result.is_ok]
    requests = [RequestFigures.of(result) for result in good]
    started_s = min((result.sent_s for result in results), default=0.0)
    duration_s = max((result.finished_s for result in results), default=0.0) - started_s
    per_second = 1 / duration_s if duration_s > 0 else 0.0
    num_input = sum(result.num_prompt_tokens for result in good)
    num_output = sum(result.num_output_tokens for result in good)
    names = sorted({name for result in good for name in result.stages})
    return BenchFigures(
        duration_s=duration_s,
        num_completed=len(good),
        num_failed=len(results) - len(good),
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        request_throughput=len(good) * per_second,
        request_goodput=sum(request.meets(slo_ms) for request in requests) * per_second if slo_ms else None,
        output_throughput=num_output * per_second,
        total_token_throughput=(num_input + num_output) * per_second,
        max_concurrency=_max_concurrency(results),
        ttft_ms=Distribution.of([request.ttft_ms for request in requests]),
        # One token has no time between tokens.
        tpot_ms=Distribution.of(
            [r.tpot_ms for r, result in zip(requests, good, strict=True) if result.num_output_tokens > 1]
        ),
        itl_ms=Distribution.of([gap for request in requests for gap in request.itl_ms]),
        e2el_ms=Distribution.of([request.e2el_ms for request in requests]),
        stages_ms={name: Distribution.of([1e3 * result.stages.get(name, 0.0) for result in good]) for name in names},
    )


def _max_concurrency(results: Sequence[BenchResult]) -> int:
    """Most requests that were under way at once."""
    changes = sorted([(result.finished_s, -1) for result in results] + [(result.sent_s, 1) for result in results])
    most = running = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def _percentile(ordered: Sequence[float], percent: float) -> float:
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)
