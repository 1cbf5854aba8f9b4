"""Actor-seconds of a scaling policy against the best fixed allocation that attains as much, over Azure-like days.

`python -m benchmarks.scaling --seed 1 [--seed 2 ...] [--week] [--policy NAME] [--output FILE.json] [--svg FILE.svg]`

The fixed allocation is found with hindsight: of each day by itself, or with --week one for seven days.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.scaling.fixed_search import best_fixed
from benchmarks.scaling.picture import terminal_plot, write_svg
from benchmarks.scaling.rates import ActorRates
from benchmarks.scaling.simulation import DECODE, ENCODER, PREFILL, STAGES, Allocation, Outcome, Simulation
from benchmarks.scaling.trace import DAY_S, Arrival, azure_like_day, azure_like_week
from router.control.scaling import scaling_policy
from router.control.scaling.context import ScalingPolicy
from triptych.config.scaling import ScalingSection

# The bounds an answer is to keep, on a whole H200: a slower actor has as much more time. About twice what an idle one
# takes for a prompt, and twice its step.
TTFT_S, TTFT_PER_PROMPT_TOKEN_S, TPOT_STEPS = 0.25, 0.0000625, 2.0
FIRST: Allocation = {ENCODER: 3, PREFILL: 8, DECODE: 3}
HEAD = (
    f"{'seed':>4} {'requests':>9} {'':<12} {'encoder':>8} {'prefill':>8} {'decode':>8} {'actor-h':>8} {'attained':>9}"
)


def settings_of(rates: ActorRates) -> ScalingSection:
    """What an operator would set for traffic of this kind; the same for every seed."""
    return ScalingSection(
        interval_s=5.0,
        ttft_s=TTFT_S / rates.device_share,
        ttft_per_prompt_token_s=TTFT_PER_PROMPT_TOKEN_S / rates.device_share,
        tpot_s=TPOT_STEPS * rates.step_s(1),
        attainment=0.99,
        target_utilization=0.85,
        hysteresis=0.05,
        down_window_s=600.0,
    )


def compare(
    days: list[list[Arrival]], seed: int, name: str, rates: ActorRates
) -> tuple[dict[str, Any], Outcome, Allocation]:
    """Simulates a policy, finds the best fixed allocation, prints both."""
    settings = settings_of(rates)

    def simulate(begin: Allocation, policy: ScalingPolicy | None = None) -> Outcome:
        total = Outcome()
        for number, arrivals in enumerate(days):
            total.add(Simulation(settings, rates, begin, policy).run(arrivals), number * DAY_S)
        return total

    outcome = simulate(FIRST, scaling_policy(name))
    print_row(seed, name, outcome)
    highest = {stage: _highest(outcome, stage) + 8 for stage in STAGES}
    fixed, fixed_outcome = best_fixed(simulate, dict.fromkeys(STAGES, 1), highest, outcome.attained)
    print_row(seed, "best fixed", fixed_outcome)
    saved = 1 - outcome.total_actor_seconds / fixed_outcome.total_actor_seconds
    print(f"{'':>15}{100 * saved:.1f} % fewer actor-seconds; {outcome.num_changes} decisions\n", flush=True)
    row = {
        "seed": seed,
        "num_requests": outcome.num_requests,
        "saved_percent": 100 * saved,
        "policy": _figures(outcome),
        "fixed": {**_figures(fixed_outcome), "allocation": {str(stage): count for stage, count in fixed.items()}},
        "decisions": outcome.num_changes,
    }
    return row, outcome, fixed


def print_row(seed: int, name: str, outcome: Outcome) -> None:
    hours = {stage: outcome.actor_seconds[stage] / 3_600 for stage in STAGES}
    figures = " ".join(f"{hours[stage]:8.1f}" for stage in STAGES)
    print(
        f"{seed:>4} {outcome.num_requests:>9,} {name:<12} {figures} {sum(hours.values()):8.1f} {outcome.attained:9.4f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append", help="may be given several times; 1 when not given")
    parser.add_argument("--week", action="store_true", help="seven days and one fixed allocation for all of them")
    parser.add_argument("--policy", default="load_and_slo")
    parser.add_argument("--rate-factor", type=float, default=1.0, help="times the trace's request rate")
    parser.add_argument("--device-share", type=float, default=1 / 24, help="an actor's rates as a part of an H200's")
    parser.add_argument("--output", type=Path, help="JSON report")
    parser.add_argument("--svg", type=Path, help="decisions of the first seed")
    arguments = parser.parse_args()
    rates, rows = ActorRates(arguments.device_share), []
    print(HEAD)
    for position, seed in enumerate(arguments.seed or [1]):
        factor = arguments.rate_factor
        days = azure_like_week(seed, factor) if arguments.week else [azure_like_day(seed, factor)]
        row, outcome, fixed = compare(days, seed, arguments.policy, rates)
        rows.append(row)
        if position == 0:
            print(terminal_plot(outcome.decisions, fixed, len(days) * DAY_S), end="\n\n")
            if arguments.svg:
                title = f"{arguments.policy}, seed {seed}: {row['saved_percent']:.0f} % fewer actor-seconds"
                write_svg(arguments.svg, outcome.decisions, fixed, days, title)
    saved = [row["saved_percent"] for row in rows]
    print(f"fewer actor-seconds: median {statistics.median(saved):.1f} %, {min(saved):.1f} to {max(saved):.1f} %")
    if arguments.output:
        report = _report(rows, arguments, rates)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _report(rows: list[dict[str, Any]], arguments: argparse.Namespace, rates: ActorRates) -> dict[str, Any]:
    saved = [row["saved_percent"] for row in rows]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "benchmark": "scaling",
        "environment": {"time": "virtual", "rates": asdict(rates), "settings": settings_of(rates).model_dump()},
        "rows": {
            f"scaling.{arguments.policy}.{'week' if arguments.week else 'day'}": {
                "median": statistics.median(saved),
                "samples": saved,
                "details": {"rate_factor": arguments.rate_factor, "days": rows},
            }
        },
    }


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "attained": outcome.attained,
        "actor_seconds": {str(stage): seconds for stage, seconds in outcome.actor_seconds.items()},
        "late_by": {str(stage): number for stage, number in outcome.late_by.items()},
    }


def _highest(outcome: Outcome, stage: str) -> int:
    return max(decision.target for decision in outcome.decisions if decision.stage == stage)


if __name__ == "__main__":
    main()
