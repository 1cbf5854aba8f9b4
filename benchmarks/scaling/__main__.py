"""Actor-seconds of a scaling policy against the best fixed allocation that attains as much, over Azure-like days.

`python -m benchmarks.scaling --seed 1 --days 24 [--oracle 4] [--week] [--policy NAME] [--output FILE.json]
[--svg FILE.svg]`

The fixed allocation is found with hindsight: of each day by itself, or with --week one for seven days.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.scaling.fixed_search import best_fixed
from benchmarks.scaling.oracle import fewest_actor_seconds
from benchmarks.scaling.picture import terminal_plot, write_svg
from benchmarks.scaling.rates import ActorRates
from benchmarks.scaling.simulation import DECODE, ENCODER, PREFILL, STAGES, Allocation, Outcome, Simulation
from benchmarks.scaling.trace import DAY_S, Arrival, azure_like_day, azure_like_week, episode_of
from router.control.membership import StageName
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
    """What an operator would set for traffic of this kind, for every seed. Chosen on 101, 102 and 105."""
    return ScalingSection(
        interval_s=5.0,
        ttft_s=TTFT_S / rates.device_share,
        ttft_per_prompt_token_s=TTFT_PER_PROMPT_TOKEN_S / rates.device_share,
        tpot_s=TPOT_STEPS * rates.step_s(1),
        attainment=0.99,
        target_utilization=0.85,
        headroom_deviations=1.4,
        smoothing_s=120.0,
        hysteresis=0.0,
        down_window_s=2_700.0,
        correction_limit=1.25,
    )


def compare(
    days: list[list[Arrival]], seed: int, name: str, rates: ActorRates, with_oracle: bool
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
    # No fixed count attains as much with half of what the policy had on average.
    lowest = {stage: max(1, int(outcome.actor_seconds[stage] / (len(days) * DAY_S) / 2)) for stage in STAGES}
    highest = {stage: _highest(outcome, stage) + 1 for stage in STAGES}
    fixed, fixed_outcome = best_fixed(simulate, lowest, highest, outcome.attained)
    print_row(seed, "best fixed", fixed_outcome)
    saved = 1 - outcome.total_actor_seconds / fixed_outcome.total_actor_seconds
    decided = f"{outcome.num_changes} decisions, {outcome.num_turns} turns"
    print(f"{'':>15}{100 * saved:.1f} % fewer actor-seconds; {decided}\n", flush=True)
    row = {
        "seed": seed,
        "num_requests": outcome.num_requests,
        "saved_percent": 100 * saved,
        "policy": _figures(outcome),
        "fixed": {**_figures(fixed_outcome), "allocation": {str(stage): count for stage, count in fixed.items()}},
        "decisions": outcome.num_changes,
        "turns": outcome.num_turns,
    }
    if with_oracle:
        seconds = _bound(days[0], settings, rates, fixed, outcome)
        row["oracle_actor_seconds"] = {str(stage): value for stage, value in seconds.items()}
        row["oracle_saves_percent"] = 100 * (1 - sum(seconds.values()) / fixed_outcome.total_actor_seconds)
        print(f"{'':>15}an oracle at most {row['oracle_saves_percent']:.1f} %\n", flush=True)
    return row, outcome, fixed


def _bound(
    arrivals: list[Arrival], settings: ScalingSection, rates: ActorRates, fixed: Allocation, outcome: Outcome
) -> dict[StageName, float]:
    """With no more late requests than a policy's `outcome` had."""

    def simulate(part: Sequence[Arrival], counts: Allocation) -> Outcome:
        return Simulation(settings, rates, counts).run(part)

    highest = {stage: count + 2 for stage, count in fixed.items()}
    ample = {stage: 2 * count + 4 for stage, count in fixed.items()}
    return fewest_actor_seconds(simulate, arrivals, highest, ample, outcome.num_late)


def print_row(seed: int, name: str, outcome: Outcome) -> None:
    hours = {stage: outcome.actor_seconds[stage] / 3_600 for stage in STAGES}
    figures = " ".join(f"{hours[stage]:8.1f}" for stage in STAGES)
    print(
        f"{seed:>4} {outcome.num_requests:>9,} {name:<12} {figures} {sum(hours.values()):8.1f} {outcome.attained:9.4f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the first day or week")
    parser.add_argument("--days", type=int, default=1, help="so many seeds, from the first on")
    parser.add_argument("--oracle", type=int, default=0, help="of so many of them also a bound on what can be saved")
    parser.add_argument("--week", action="store_true", help="seven days and one fixed allocation for all of them")
    parser.add_argument("--policy", default="load_and_slo")
    parser.add_argument("--rate-factor", type=float, default=1.0, help="times the trace's request rate")
    parser.add_argument("--device-share", type=float, default=1 / 24, help="an actor's rates as a part of an H200's")
    parser.add_argument("--output", type=Path, help="JSON report")
    parser.add_argument("--svg", type=Path, help="decisions of one seed")
    parser.add_argument("--svg-seed", type=int, help="which; the first when not given")
    arguments = parser.parse_args()
    rates, rows = ActorRates(arguments.device_share), []
    print(HEAD)
    for position in range(arguments.days):
        seed, factor = arguments.seed + position, arguments.rate_factor
        days = azure_like_week(seed, factor) if arguments.week else [azure_like_day(seed, factor)]
        with_oracle = position < arguments.oracle and not arguments.week
        row, outcome, fixed = compare(days, seed, arguments.policy, rates, with_oracle)
        row["has_episode"] = arguments.week or episode_of(seed)[0] >= 0
        rows.append(row)
        title = f"{arguments.policy}, seed {seed}: {row['saved_percent']:.0f} % fewer actor-seconds"
        if position == 0:
            print(terminal_plot(outcome.decisions, fixed, len(days) * DAY_S), end="\n\n")
        if arguments.svg and seed == (arguments.svg_seed or arguments.seed):
            write_svg(arguments.svg, outcome.decisions, fixed, days, title)
        if arguments.output:
            report = _report(rows, arguments, rates)
            arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for words, chosen in _groups(rows).items():
        print(f"{words}: {len(chosen)}, fewer actor-seconds: {_quartiles(chosen)}")


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Per cent saved: of all, of those with an image-driven burst and of those without."""
    saved = [(row["saved_percent"], row["has_episode"]) for row in rows]
    groups = {
        "all": [value for value, _ in saved],
        "with an episode": [value for value, has_episode in saved if has_episode],
        "without": [value for value, has_episode in saved if not has_episode],
    }
    return {words: values for words, values in groups.items() if values}


def _quartiles(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f} %"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"median {middle:.1f} %, quartiles {low:.1f} and {high:.1f} %, {min(values):.1f} to {max(values):.1f} %"


def _report(rows: list[dict[str, Any]], arguments: argparse.Namespace, rates: ActorRates) -> dict[str, Any]:
    """What the file has already of other rows and seeds stays in it."""
    before = json.loads(arguments.output.read_text(encoding="utf-8"))["rows"] if arguments.output.exists() else {}
    name = f"scaling.{arguments.policy}.{'week' if arguments.week else 'day'}"
    by_seed = {row["seed"]: row for row in (before[name]["details"]["days"] if name in before else [])}
    for row in rows:
        by_seed[row["seed"]] = by_seed.get(row["seed"], {}) | row
    rows = [by_seed[seed] for seed in sorted(by_seed)]
    new: dict[str, dict[str, Any]] = {}
    for words, values in _groups(rows).items():
        key = name if words == "all" else f"{name}.{words.replace(' ', '_')}"
        new[key] = {"median": statistics.median(values), "samples": values}
    new[name]["details"] = {"rate_factor": arguments.rate_factor, "days": rows}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "benchmark": "scaling",
        "environment": {"time": "virtual", "rates": asdict(rates), "settings": settings_of(rates).model_dump()},
        "rows": {**before, **new},
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
