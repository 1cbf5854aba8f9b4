"""LaneMemory: which lane to leave alone for which producer, because it failed there a moment ago."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MAX_DOUBLINGS = 3
_MAX_REMEMBERED = 4_096


@dataclass
class _Failure:
    retry_at_s: float
    num_in_a_row: int


class LaneMemory:
    """A lane that failed for a producer is left out for `retry_s`; each further failure doubles that, up to 8 times."""

    def __init__(self, retry_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._retry_s = retry_s
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], _Failure] = OrderedDict()

    def is_left_out(self, producer_id: str, lane: str) -> bool:
        failure = self._failures.get((producer_id, lane))
        return failure is not None and self._clock() < failure.retry_at_s

    def note_failure(self, producer_id: str, lane: str) -> float:
        """Returns for how many seconds the lane is left out."""
        key = (producer_id, lane)
        before = self._failures.pop(key, None)
        num_in_a_row = 1 if before is None else before.num_in_a_row + 1
        pause_s = self._retry_s * (1 << min(num_in_a_row - 1, _MAX_DOUBLINGS))
        self._failures[key] = _Failure(self._clock() + pause_s, num_in_a_row)
        if len(self._failures) > _MAX_REMEMBERED:
            self._failures.popitem(last=False)
        return pause_s

    def note_success(self, producer_id: str, lane: str) -> None:
        self._failures.pop((producer_id, lane), None)
