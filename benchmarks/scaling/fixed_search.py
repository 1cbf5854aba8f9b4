"""The cheapest fixed allocation that attains as much as a policy did."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from benchmarks.scaling.simulation import STAGES, Allocation, Outcome

Simulate = Callable[[Allocation], Outcome]


def best_fixed(
    simulate: Simulate, lowest: Allocation, highest: Allocation, attained: float
) -> tuple[Allocation, Outcome]:
    """Of all allocations from `lowest` to `highest` the one with the fewest actors whose attainment is `attained`.

    How many requests a stage makes late depends on its own count and hardly on the others': each stage's curve is
    simulated once, beside other stages of the same rank, and says in which order allocations are worth a try. What is
    returned was simulated as a whole. Raises ValueError when none in the range attains it.
    """
    late = _late_curves(simulate, lowest, highest)
    ranges = [range(lowest[stage], highest[stage] + 1) for stage in STAGES]
    allocations = [dict(zip(STAGES, counts, strict=True)) for counts in product(*ranges)]

    def estimate(allocation: Allocation) -> float:
        return sum(late[stage][allocation[stage]] for stage in STAGES)

    allocations.sort(key=lambda allocation: (sum(allocation.values()), estimate(allocation)))
    for allocation in allocations:
        # The estimate counts a request twice that two stages make late, and misses what they do to each other.
        if 1.0 - 0.7 * estimate(allocation) < attained:
            continue
        outcome = simulate(allocation)
        if outcome.attained >= attained:
            return allocation, outcome
    raise ValueError(f"no allocation up to {highest} attains {attained:.4f}")


def _late_curves(simulate: Simulate, lowest: Allocation, highest: Allocation) -> dict[str, dict[int, float]]:
    """Of each stage: share of requests that it makes late, by its count."""
    curves: dict[str, dict[int, float]] = {stage: {} for stage in STAGES}
    for step in range(max(highest[stage] - lowest[stage] for stage in STAGES) + 1):
        allocation = {stage: min(lowest[stage] + step, highest[stage]) for stage in STAGES}
        outcome = simulate(allocation)
        for stage in STAGES:
            curves[stage].setdefault(allocation[stage], outcome.late_by[stage] / max(1, outcome.num_requests))
    return curves
