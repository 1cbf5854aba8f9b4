"""The router's own bound: how many requests are inside it at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from triptych.errors import Overloaded

SMOOTHING = 0.1  # weight of the newest request in the mean time a request stays
MIN_RETRY_S, MAX_RETRY_S = 0.1, 30.0


class Admission:
    """Counts requests from arrival to end and turns away what is over the limit. Lives on one event loop."""

    def __init__(self, max_pending_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_pending_requests = max_pending_requests
        self._clock = clock
        self._num_pending = 0
        self._mean_stay_s = 1.0

    @property
    def num_pending(self) -> int:
        """Requests inside the router now."""
        return self._num_pending

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Holds a place for the body's duration. Raises Overloaded, with retry advice, when there is none."""
        if self._num_pending >= self._max_pending_requests:
            raise Overloaded(
                f"{self._num_pending} requests are pending, "
                f"expected fewer than {self._max_pending_requests} (limits.max_pending_requests)",
                field="limits.max_pending_requests",
                retry_after_s=self._retry_after_s(),
            )
        entered_at = self._clock()
        self._num_pending += 1
        try:
            yield
        finally:
            self._num_pending -= 1
            self._mean_stay_s += SMOOTHING * (self._clock() - entered_at - self._mean_stay_s)

    def _retry_after_s(self) -> float:
        """A tenth of the mean stay: by then, in a steady state, about a tenth of the places came free."""
        return min(max(0.1 * self._mean_stay_s, MIN_RETRY_S), MAX_RETRY_S)
