"""Actor-seconds of a scaling policy against the best fixed allocation that attains as much, over an Azure-like day.

`python -m benchmarks.scaling --seed 1 [--seed 2 ...] [--policy NAME] [--output FILE.json] [--svg FILE.svg]`
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
from benchmarks.scaling.trace import Arrival, azure_like_day
from router.control.scaling import scaling_policy
from triptych.config_scaling import ScalingSection

# The bounds an answer is to keep: about twice what an idle actor of these rates takes.
TTFT_S, TTFT_PER_PROMPT_TOKEN_S, TPOT_STEPS = 3.0, 0.00075, 2.0
BEGIN: Allocation = {ENCODER: 3, PREFILL: 8, DECODE: 3}
HEAD = (
    f"{'seed':>4} {'requests':>9} {'':<12} {'encoder':>8} {'prefill':>8} {'decode':>8} {'actor-h':>8} {'attained':>9}"
)


def settings_of(rates: ActorRates) -> ScalingSection:
    """What an operator would set for traffic of this kind; the same for every seed."""
    return ScalingSection(
        interval_s=5.0,
        ttft_s=TTFT_S,
        ttft_per_prompt_token_s=TTFT_PER_PROMPT_TOKEN_S,
        tpot_s=TPOT_STEPS * rates.step_s(1),
        attainment=0.99,
        target_utilization=0.8,
        hysteresis=0.05,
        down_window_s=600.0,
    )


def one_day(seed: int, name: str, rate_factor: float, rates: ActorRates) -> tuple[dict[str, Any], Outcome, Allocation]:
    """Simulates a policy, finds the best fixed allocation, prints both."""
    arrivals, settings = azure_like_day(seed, rate_factor), settings_of(rates)
    outcome = Simulation(settings, rates, BEGIN, scaling_policy(name)).run(arrivals)
    print_row(seed, arrivals, name, outcome)
    # Fewer than the mean work of a stage never attain anything; many more than the policy's highest never pay.
    lowest = {stage: max(1, int(outcome.actor_seconds[stage] / arrivals[-1].at_s)) for stage in STAGES}
    highest = {stage: _highest(outcome, stage) + 3 for stage in STAGES}
    fixed, fixed_outcome = best_fixed(
        lambda allocation: Simulation(settings, rates, allocation).run(arrivals), lowest, highest, outcome.attained
    )
    print_row(seed, arrivals, "best fixed", fixed_outcome)
    saved = 1 - outcome.total_actor_seconds / fixed_outcome.total_actor_seconds
    print(f"{'':>15}{100 * saved:.1f} % fewer actor-seconds; {len(outcome.decisions) - len(STAGES)} decisions\n")
    row = {
        "seed": seed,
        "num_requests": outcome.num_requests,
        "saved_percent": 100 * saved,
        "policy": _figures(outcome),
        "fixed": {**_figures(fixed_outcome), "allocation": {str(stage): count for stage, count in fixed.items()}},
        "decisions": len(outcome.decisions) - len(STAGES),
    }
    return row, outcome, fixed


def print_row(seed: int, arrivals: list[Arrival], name: str, outcome: Outcome) -> None:
    hours = {stage: outcome.actor_seconds[stage] / 3_600 for stage in STAGES}
    figures = " ".join(f"{hours[stage]:8.1f}" for stage in STAGES)
    print(f"{seed:>4} {len(arrivals):>9,} {name:<12} {figures} {sum(hours.values()):8.1f} {outcome.attained:9.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append", help="may be given several times; 1 when not given")
    parser.add_argument("--policy", default="load_and_slo")
    parser.add_argument("--rate-factor", type=float, default=2.0, help="times the trace's request rate")
    parser.add_argument("--device-share", type=float, default=1 / 12, help="an actor's rates as a part of an H200's")
    parser.add_argument("--output", type=Path, help="JSON report")
    parser.add_argument("--svg", type=Path, help="decisions of the first seed")
    arguments = parser.parse_args()
    rates, rows = ActorRates(arguments.device_share), []
    print(HEAD)
    for position, seed in enumerate(arguments.seed or [1]):
        row, outcome, fixed = one_day(seed, arguments.policy, arguments.rate_factor, rates)
        rows.append(row)
        if position == 0:
            arrivals = azure_like_day(seed, arguments.rate_factor)
            print(terminal_plot(outcome.decisions, fixed, arrivals[-1].at_s), end="\n\n")
            if arguments.svg:
                title = f"{arguments.policy}, seed {seed}: {row['saved_percent']:.0f} % fewer actor-seconds"
                write_svg(arguments.svg, outcome.decisions, fixed, arrivals, title)
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
            f"scaling.{arguments.policy}.saved": {
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
