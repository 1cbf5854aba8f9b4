"""What became of the requests of one run, and how two runs compare."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.role_shift.trace import LONG, SHORT
from benchmarks.shift.run import Change, Run, Served

_COMPARED = ("latency_median_s", "latency_mean_s", "ttft_median_s", "tpot_median_ms", "tpot_mean_ms")


def figures(run: Run) -> dict[str, Any]:
    """For the report. Latency: from when the router had the request to its last token."""
    return {
        "num_requests": len(run.served),
        "num_failed": sum(bool(served.error) for served in run.served),
        "errors": dict(Counter(served.error for served in run.served if served.error)),
        "num_begun_again": sum(served.attempts > 1 for served in run.served),
        **_times(run.served),
        "phases": {phase: _times([one for one in run.served if one.phase == phase]) for phase in (SHORT, LONG)},
        "moves": moves(run.changes),
        "seconds": round(run.seconds, 1),
    }


def moves(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """A move is seen as one stage that is to have an actor less and another that is to have one more, at a time."""
    pairs = []
    for one in changes:
        for other in changes:
            if one.at_s == other.at_s and one.after < one.before and other.after > other.before:
                pairs.append({"at_s": round(one.at_s, 1), "from": str(one.stage), "to": str(other.stage)})
    return pairs


def ratios(static: dict[str, Any], policy: dict[str, Any]) -> dict[str, float]:
    """How many times as much without the policy."""
    return {name: round(static[name] / policy[name], 2) for name in _COMPARED if policy[name]}


def _times(served: Sequence[Served]) -> dict[str, float]:
    answered = [one for one in served if not one.error]
    if not answered:
        return dict.fromkeys(_COMPARED, 0.0)
    latencies, later = [one.total_s for one in answered], [1e3 * (one.tpot_s or 0.0) for one in answered]
    values = (
        statistics.median(latencies),
        statistics.fmean(latencies),
        statistics.median(one.ttft_s for one in answered),
        statistics.median(later),
        statistics.fmean(later),
    )
    return {name: round(value, 3) for name, value in zip(_COMPARED, values, strict=True)}
