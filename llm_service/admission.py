"""TokenAdmission: how many prompt tokens may wait at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triptych.errors import Overloaded

RETRY_AFTER_S = 1.0


class TokenHold:
    """The prompt tokens of one request, counted as waiting until `release`."""

    def __init__(self, admission: TokenAdmission, num_tokens: int) -> None:
        self._admission = admission
        self._num_tokens = num_tokens

    def release(self) -> None:
        """The request waits no more; idempotent."""
        self._admission.num_waiting_tokens -= self._num_tokens
        self._num_tokens = 0


class TokenAdmission:
    """Counts a prompt from its acceptance, the fetch of its embeddings included, to its first token."""

    def __init__(self, max_waiting_tokens: int) -> None:
        self.max_waiting_tokens = max_waiting_tokens
        self.num_waiting_tokens = 0

    @contextmanager
    def hold(self, num_tokens: int) -> Iterator[TokenHold]:
        """Counts `num_tokens`, for the body at most. Raises Overloaded when there is no room; a lone prompt has."""
        if self.num_waiting_tokens and self.num_waiting_tokens + num_tokens > self.max_waiting_tokens:
            raise Overloaded(
                f"{self.num_waiting_tokens} prompt tokens are waiting here, and {num_tokens} more would pass the limit "
                f"of {self.max_waiting_tokens} (max_waiting_tokens of the stage)",
                field="max_waiting_tokens",
                retry_after_s=RETRY_AFTER_S,
            )
        self.num_waiting_tokens += num_tokens
        hold = TokenHold(self, num_tokens)
        try:
            yield hold
        finally:
            hold.release()
