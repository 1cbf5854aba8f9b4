"""What one who knew the day could save at most: a lower bound on the actor-seconds of any policy."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from benchmarks.scaling.simulation import STAGES, Allocation, Outcome
from benchmarks.scaling.trace import DAY_S, Arrival
from router.control.membership import StageName

INTERVAL_S = 900.0
NUM_INTERVALS = round(DAY_S / INTERVAL_S)
Simulate = Callable[[Sequence[Arrival], Allocation], Outcome]


def fewest_actor_seconds(
    simulate: Simulate, arrivals: Sequence[Arrival], highest: Allocation, ample: Allocation, num_late: int
) -> dict[StageName, float]:
    """Of each stage, with a count for every INTERVAL_S that is known beforehand and `num_late` late requests a day.

    Everything is in the oracle's favour: actors start at once and go at once, each interval begins with empty queues,
    and each stage may be late as often as all of them together, as if the others had `ample` actors. Counts that change
    within an interval are not looked at.
    """
    parts: list[list[Arrival]] = [[] for _ in range(NUM_INTERVALS)]
    for arrival in arrivals:
        parts[min(int(arrival.at_s // INTERVAL_S), NUM_INTERVALS - 1)].append(arrival)
    seconds = {}
    for stage in STAGES:
        late = [
            [simulate(part, {**ample, stage: count}).num_late for count in range(1, highest[stage] + 1)]
            for part in parts
        ]
        seconds[stage] = INTERVAL_S * sum(cheapest(late, num_late))
    return seconds


def cheapest(late: Sequence[Sequence[int]], num_late: int) -> list[int]:
    """The fewest actors for each interval that make at most `num_late` requests late in all.

    late: of each interval, how many are late with 1, 2, ... actors. From the most actors on they are taken away, always
    where it makes the fewest late for each.
    """
    counts = [len(row) for row in late]
    steps: list[tuple[float, int, int]] = []

    def offer(interval: int) -> None:
        row, count = late[interval], counts[interval]
        prices = [((row[fewer - 1] - row[count - 1]) / (count - fewer), fewer) for fewer in range(1, count)]
        if prices:
            price, fewer = min(prices)
            heapq.heappush(steps, (price, interval, fewer))

    for interval in range(len(late)):
        offer(interval)
    total = sum(row[-1] for row in late)
    while steps:
        _, interval, fewer = heapq.heappop(steps)
        total += late[interval][fewer - 1] - late[interval][counts[interval] - 1]
        if total > num_late:
            break
        counts[interval] = fewer
        offer(interval)
    return counts
