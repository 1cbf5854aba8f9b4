"""CapacityMeter: what an actor of a stage gets done in a second, from what the actors themselves count."""

from __future__ import annotations

from dataclasses import dataclass

# Weight of the newest measurement.
_WEIGHT = 0.2
# Of less time the counters, which move by whole batches, say little.
_SHORTEST_S = 0.5


@dataclass(frozen=True)
class _Reading:
    at_s: float
    done: int
    pending: int


class CapacityMeter:
    """Work a second of one actor of a stage; `initial` until something was measured.

    An actor that had more to do at the beginning of a span than it did in it was busy all the time: what it did then is
    a measurement. Of any other span the capacity is at least what was done.
    """

    def __init__(self, initial: float) -> None:
        self._work_per_s = initial
        self._is_measured = False
        self._readings: dict[str, _Reading] = {}

    @property
    def work_per_s(self) -> float:
        return self._work_per_s

    def note(self, actor_id: str, at_s: float, done: int, pending: int) -> None:
        """done: work since the actor's start; pending: what it has to do now."""
        before = self._readings.get(actor_id)
        if before is not None and at_s - before.at_s < _SHORTEST_S:
            return
        self._readings[actor_id] = _Reading(at_s, done, pending)
        if before is None or done <= before.done:
            return
        rate = (done - before.done) / (at_s - before.at_s)
        if before.pending >= done - before.done:
            weight = _WEIGHT if self._is_measured else 1.0
            self._work_per_s += weight * (rate - self._work_per_s)
            self._is_measured = True
        elif rate > self._work_per_s:
            self._work_per_s = rate

    def retain(self, actor_ids: set[str]) -> None:
        """Forgets actors that are gone."""
        self._readings = {actor_id: reading for actor_id, reading in self._readings.items() if actor_id in actor_ids}
