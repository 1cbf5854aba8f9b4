"""Samples of a running system, and what two of them say about the time between them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from router.cli.admin import running_actors
from triptych.client import Client
from triptych.errors import DeadlineExceeded, NotFound, Unavailable
from triptych.v1 import admin_pb2

# Rates and latencies are of that long.
WINDOW_S = 5.0
_MAX_CALLS = 8

Counter = Callable[[admin_pb2.ActorInfo], float]


@dataclass(frozen=True)
class Sample:
    """What the router and every actor that answered said. `taken_s` is on the clock of time.monotonic."""

    taken_s: float
    topology: admin_pb2.GetTopologyResponse
    infos: Mapping[str, admin_pb2.ActorInfo]


def take_sample(client: Client) -> Sample:
    """Asks the router, then all actors through it. Raises what the router answers about itself."""

    def ask(actor_id: str) -> admin_pb2.ActorInfo | None:
        try:
            return client.actor_info(actor_id)
        except (NotFound, Unavailable, DeadlineExceeded):
            return None  # It went away between the two questions.

    topology = client.topology()
    actor_ids = running_actors(topology)
    with ThreadPoolExecutor(_MAX_CALLS) as threads:
        infos = dict(zip(actor_ids, threads.map(ask, actor_ids), strict=True))
    return Sample(time.monotonic(), topology, {key: info for key, info in infos.items() if info is not None})


class Window:
    """The samples of the last WINDOW_S, the newest included."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Forgets those that are too old, but for one to compare with."""
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].taken_s <= sample.taken_s - self._window_s:
            self._samples.popleft()

    @property
    def newest(self) -> Sample:
        return self._samples[-1]

    def rate(self, actor_id: str, counter: Counter) -> float:
        """How fast an actor's counter grows, a second; since it was first seen, where that is not long ago."""
        return self.growth(actor_id, counter) / self._elapsed_s(actor_id)

    def growth(self, actor_id: str, counter: Counter) -> float:
        """By how much an actor's counter grew."""
        seen = self._seen(actor_id)
        return counter(seen[-1].infos[actor_id]) - counter(seen[0].infos[actor_id]) if seen else 0.0

    def router_rate(self, counter: Callable[[admin_pb2.RouterCounters], float]) -> float:
        """How fast one of the router's counters grows, a second."""
        first, last = self._samples[0], self.newest
        elapsed_s = last.taken_s - first.taken_s
        return (counter(last.topology.router) - counter(first.topology.router)) / elapsed_s if elapsed_s else 0.0

    def median_s(self, histogram: Callable[[admin_pb2.RouterCounters], admin_pb2.Histogram]) -> float | None:
        """Median of what came into a histogram of the router, in seconds; None when nothing did."""
        first, last = (histogram(sample.topology.router) for sample in (self._samples[0], self.newest))
        before = first.counts or [0] * len(last.counts)
        counts = [new - old for new, old in zip(last.counts, before, strict=True)]
        return median(last.upper_bounds_s, counts)

    def _seen(self, actor_id: str) -> list[Sample]:
        return [sample for sample in self._samples if actor_id in sample.infos]

    def _elapsed_s(self, actor_id: str) -> float:
        seen = self._seen(actor_id)
        return (seen[-1].taken_s - seen[0].taken_s if seen else 0.0) or 1.0


def median(upper_bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Of values that are known by their buckets, taken as evenly spread within them; None without any."""
    half = sum(counts) / 2
    if half <= 0:
        return None
    lower, below = 0.0, 0
    for upper, count in zip(upper_bounds, counts, strict=True):
        if count and below + count >= half:
            # The last bucket has no end.
            return lower if upper == float("inf") else lower + (upper - lower) * (half - below) / count
        lower, below = upper, below + count
    return None
