"""CapacityMeter: what an actor of a stage gets done in a second, from what the actors themselves count."""

from __future__ import annotations

import math
from dataclasses import dataclass

# So many seconds of work outweigh what was believed before: enough batches that it does not matter in which span one of
# them ends.
_MEMORY_S = 5.0
# Of less time the counters, which move by whole batches, say little.
_SHORTEST_S = 0.5


@dataclass(frozen=True)
class _Reading:
    at_s: float
    done: int
    pending: int


class CapacityMeter:
    """Work a second of one actor of a stage; `initial` counts until actors were busy for some seconds.

    An actor that had more to do at the beginning of a span than it did in it was busy all the time: what it did then is
    a measurement. Of any other span the capacity is at least what came and was done in it: of what was there at its
    beginning the greater part may have been done before, since counters move by whole batches.
    """

    def __init__(self, initial: float) -> None:
        self._work_per_s = initial
        self._readings: dict[str, _Reading] = {}

    @property
    def work_per_s(self) -> float:
        return self._work_per_s

    def note(self, actor_id: str, at_s: float, done: int, pending: int) -> None:
        """done: work since the actor's start; pending: what it has to do now."""
        before = self._readings.get(actor_id)
        if before is not None and at_s - before.at_s < _SHORTEST_S:
            return
        if before is not None and done == before.done and before.pending and pending:
            # In the midst of a batch: the span ends with it, or the batch would seem to be done in no time.
            return
        self._readings[actor_id] = _Reading(at_s, done, pending)
        if before is None or done <= before.done:
            return
        span_s, num_done = at_s - before.at_s, done - before.done
        if before.pending >= num_done:
            weight = 1.0 - math.exp(-span_s / _MEMORY_S)
            self._work_per_s += weight * (num_done / span_s - self._work_per_s)
            return
        self._work_per_s = max(self._work_per_s, (num_done - before.pending) / span_s)

    def retain(self, actor_ids: set[str]) -> None:
        """Forgets actors that are gone."""
        self._readings = {actor_id: reading for actor_id, reading in self._readings.items() if actor_id in actor_ids}
