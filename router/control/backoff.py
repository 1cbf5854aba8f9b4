"""How long a stage waits before it tries again to start an actor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from triptych.errors import TriptychError

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0


@dataclass(frozen=True)
class StartFailures:
    """Starts that failed one after another, and the last reason."""

    count: int
    error: TriptychError
    retry_at_s: float


class Backoff:
    """Consecutive start failures of each key; the wait doubles with each one, and the first success clears it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: dict[str, StartFailures] = {}

    def note_failure(self, key: str, error: TriptychError) -> StartFailures:
        """Counts a failed start; failures of one batch of starts that end together count once."""
        now = self._clock()
        before = self._failures.get(key)
        if before is not None and now < before.retry_at_s:
            return before
        count = before.count + 1 if before is not None else 1
        wait_s = min(FIRST_WAIT_S * 2 ** (count - 1), LONGEST_WAIT_S)
        self._failures[key] = StartFailures(count, error, now + wait_s)
        return self._failures[key]

    def note_success(self, key: str) -> None:
        self._failures.pop(key, None)

    def failures(self, key: str) -> StartFailures | None:
        return self._failures.get(key)

    def is_resting(self, key: str) -> bool:
        """Whether it is too early for another start."""
        failures = self._failures.get(key)
        return failures is not None and self._clock() < failures.retry_at_s
