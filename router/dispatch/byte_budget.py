"""How many bytes of requests may be inside a router process at once."""

from __future__ import annotations

from types import TracebackType

from triptych.errors import Overloaded

RETRY_AFTER_S = 1.0


class ByteBudget:
    """Counts bytes that are held and turns away what would be too many. Lives on one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_held = 0

    @property
    def num_held(self) -> int:
        """Bytes inside now."""
        return self._num_held

    def hold(self, num_bytes: int = 0) -> ByteHold:
        """Takes bytes until the hold is released: `with budget.hold(n):`. Raises Overloaded when they don't fit."""
        hold = ByteHold(self)
        hold.add(num_bytes)
        return hold

    def take(self, num_bytes: int) -> None:
        """Raises Overloaded, and takes nothing, when the bytes don't fit."""
        if self._num_held + num_bytes > self._max_bytes:
            raise Overloaded(
                f"requests with {self._num_held} bytes are pending, {num_bytes} more do not fit into "
                f"{self._max_bytes} (limits.max_pending_bytes)",
                field="limits.max_pending_bytes",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_held += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self._num_held -= num_bytes


class ByteHold:
    """Bytes of one request, given back once."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """More of the same request. Raises Overloaded when they don't fit."""
        self._budget.take(num_bytes)
        self._num_bytes += num_bytes

    def release(self) -> None:
        """The second call does nothing."""
        self._budget.give_back(self._num_bytes)
        self._num_bytes = 0

    def __enter__(self) -> ByteHold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
