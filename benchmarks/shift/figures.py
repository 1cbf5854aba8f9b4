"""What a run is worth: attainment, actor-seconds, and whether a stage flapped."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.shift.run import STAGES, Change, Run, Served
from triptych.config.scaling import ScalingSection


def is_in_time(served: Served, settings: ScalingSection) -> bool:
    """As the policy's own attainment counts it."""
    return not served.error and served.ttft_s <= settings.ttft_s and (served.tpot_s or 0.0) <= settings.tpot_s


def flaps(changes: Sequence[Change], settings: ScalingSection) -> list[Change]:
    """Changes that take back the one before it of the same stage sooner than a stage is to wait before it shrinks."""
    back = []
    for stage in STAGES:
        own = [change for change in changes if change.stage is stage]
        for before, after in itertools.pairwise(own):
            is_reversal = (before.after > before.before) != (after.after > after.before)
            if is_reversal and after.at_s - before.at_s < settings.down_cooldown_s:
                back.append(after)
    return back


def figures(run: Run, settings: ScalingSection) -> dict[str, Any]:
    """For the report."""
    return {
        "num_requests": len(run.served),
        "num_failed": sum(bool(served.error) for served in run.served),
        "errors": dict(Counter(served.error for served in run.served if served.error)),
        "num_begun_again": sum(served.attempts > 1 for served in run.served),
        "attained": sum(is_in_time(served, settings) for served in run.served) / len(run.served),
        "actor_seconds": {str(stage): round(run.actor_seconds[stage], 1) for stage in STAGES},
        "total_actor_seconds": round(sum(run.actor_seconds.values()), 1),
        "num_changes": len(run.changes),
        "num_flaps": len(flaps(run.changes, settings)),
        "phases": {phase: _phase(run, phase, settings) for phase in dict.fromkeys(one.phase for one in run.served)},
        "changes": [
            {
                "at_s": round(change.at_s, 1),
                "stage": str(change.stage),
                "before": change.before,
                "after": change.after,
                "ready_s": None if change.ready_s is None else round(change.ready_s, 1),
            }
            for change in run.changes
        ],
    }


def _phase(run: Run, phase: str, settings: ScalingSection) -> dict[str, float]:
    served = [one for one in run.served if one.phase == phase]
    answered = [one for one in served if not one.error]
    return {
        "num_requests": len(served),
        "attained": sum(is_in_time(one, settings) for one in served) / len(served),
        "ttft_median_ms": round(1e3 * statistics.median(one.ttft_s for one in answered), 1),
        "ttft_p95_ms": round(1e3 * _percentile([one.ttft_s for one in answered], 0.95), 1),
        "tpot_median_ms": round(1e3 * statistics.median(one.tpot_s or 0.0 for one in answered), 2),
    }


def _percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
