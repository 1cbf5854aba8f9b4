"""Attempts: whether a walk that failed is begun again, when, and which actors it avoids then."""

from __future__ import annotations

from collections.abc import Callable, Collection

from triptych.errors import Overloaded, TriptychError
from triptych.rpc.deadline import Deadline

RETRY_PAUSE_S = 0.05  # before the second attempt, four times as long before each further one
# While all actors of a stage are full, the pause between two attempts grows to that many times what they advise.
MAX_FULL_PAUSES = 4


class Attempts:
    """Of one request. Actors that fail end it after `max_attempts`; actors that are full only delay it, as long as its
    deadline allows: room that another router took, or that was counted otherwise there, comes free again."""

    def __init__(self, max_attempts: int, deadline: Deadline, has_others: Callable[[Collection[str]], bool]) -> None:
        """`has_others` says whether the stages of these actors have ready ones beside them."""
        self._num_left = max_attempts
        self._deadline = deadline
        self._has_others = has_others
        self._num_failed = 0
        self._num_full = 0
        self._failed: set[str] = set()
        self._full: set[str] = set()

    @property
    def num_left(self) -> int:
        """Walks that may still fail."""
        return self._num_left

    @property
    def avoid(self) -> set[str]:
        """Actors that the next walk takes only where there is no other."""
        return self._failed | self._full

    def pause_s(self, error: TriptychError, failed_actors: Collection[str]) -> float | None:
        """Until the next walk, after one that `error` of these actors ended; None where there is to be none."""
        if isinstance(error, Overloaded):
            return self._pause_of_full_s(error, failed_actors)
        self._failed |= set(failed_actors)
        self._num_left -= 1
        self._num_failed += 1
        if not self._num_left:
            return None
        return min(RETRY_PAUSE_S * 4.0 ** (self._num_failed - 1), self._deadline.remaining_s())

    def _pause_of_full_s(self, error: Overloaded, full_actors: Collection[str]) -> float | None:
        """A sibling is asked soon; when all were asked they get the time that they asked for, then any of them."""
        self._full |= set(full_actors)
        pause_s = RETRY_PAUSE_S
        if not self._has_others(self.avoid):
            self._full.clear()
            pause_s = max(error.retry_after_s, RETRY_PAUSE_S) * min(2**self._num_full, MAX_FULL_PAUSES)
            self._num_full += 1
        return pause_s if pause_s < self._deadline.remaining_s() else None
