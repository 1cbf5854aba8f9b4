"""How much work the stage takes in, in patches."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from triptych.errors import Overloaded, RequestTooLarge

SETTING = "stages.encoder.max_pending_patches"

# Advice is computed from the work finished in this window.
_WINDOW_S = 10.0
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 30.0
# Advice before any work was finished.
_FIRST_RETRY_S = 1.0


class PatchAdmission:
    """Counts patches that wait or run, at most `max_pending_patches`. Lives on the event loop; not thread-safe."""

    def __init__(self, max_pending_patches: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_pending_patches = max_pending_patches
        self.pending_patches = 0
        self._clock = clock
        self._finished: deque[tuple[float, int]] = deque()

    def admit(self, num_patches: Sequence[int]) -> None:
        """Takes all items of a request in, or none.

        Raises RequestTooLarge when they can never fit, Overloaded with retry advice when they do not fit now.
        """
        wanted = sum(num_patches)
        if wanted > self.max_pending_patches:
            raise RequestTooLarge(
                f"{len(num_patches)} item(s) with {wanted} patches in one request, largest {max(num_patches)}, "
                f"expected at most {self.max_pending_patches} ({SETTING})",
                field="items",
            )
        excess = self.pending_patches + wanted - self.max_pending_patches
        if excess > 0:
            raise Overloaded(
                f"{self.pending_patches} patches are pending, so that {wanted} more do not fit "
                f"into {self.max_pending_patches} ({SETTING})",
                field="items",
                retry_after_s=self._retry_after_s(excess),
            )
        self.pending_patches += wanted

    def finish(self, num_patches: int) -> None:
        """Work that was admitted is done."""
        self._finished.append((self._clock(), num_patches))
        self._forget_old()
        self.drop(num_patches)

    def drop(self, num_patches: int) -> None:
        """Work that was admitted failed or was cancelled."""
        self.pending_patches -= num_patches
        assert self.pending_patches >= 0, "more patches left than came in"

    def _retry_after_s(self, excess: int) -> float:
        """Time in which `excess` patches are likely to be done, at the rate of the last seconds."""
        self._forget_old()
        if not self._finished:
            return _FIRST_RETRY_S
        elapsed_s = max(self._clock() - self._finished[0][0], _MIN_RETRY_S)
        rate = sum(num_patches for _, num_patches in self._finished) / elapsed_s
        return min(max(excess / rate, _MIN_RETRY_S), _MAX_RETRY_S)

    def _forget_old(self) -> None:
        oldest = self._clock() - _WINDOW_S
        while self._finished and self._finished[0][0] < oldest:
            self._finished.popleft()
