"""The cheapest fixed allocation that attains as much as a policy did."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.scaling.simulation import STAGES, Allocation, Outcome

Simulate = Callable[[Allocation], Outcome]


def best_fixed(
    simulate: Simulate, lowest: Allocation, highest: Allocation, attained: float
) -> tuple[Allocation, Outcome]:
    """The fewest actors with which at least `attained` of the requests are in time, between `lowest` and `highest`.

    A stage alone may not make more than 1 - attained of the requests late: the fewest actors for that are found by
    halving, of all stages in the same simulations, since a stage hardly depends on the others' counts. They are a lower
    bound; from there the stage that makes most requests late gets one more until it is enough. Raises ValueError when
    `highest` is not.
    """
    low, high = dict(lowest), dict(highest)
    while any(low[stage] < high[stage] for stage in STAGES):
        middle = {stage: (low[stage] + high[stage]) // 2 for stage in STAGES}
        outcome = simulate(middle)
        for stage in STAGES:
            if low[stage] == high[stage]:
                continue
            if outcome.late_by[stage] / max(1, outcome.num_requests) <= 1 - attained:
                high[stage] = middle[stage]
            else:
                low[stage] = middle[stage] + 1
    allocation = low
    while (outcome := simulate(allocation)).attained < attained:
        growing = [stage for stage in STAGES if allocation[stage] < highest[stage]]
        if not growing:
            raise ValueError(f"{highest} attains {outcome.attained:.4f}, not {attained:.4f}")
        worst = max(growing, key=lambda stage: outcome.late_by[stage])
        allocation = {**allocation, worst: allocation[worst] + 1}
    return allocation, outcome
