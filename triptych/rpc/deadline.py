"""Deadlines: one point in time that every wait of a call, and every call it makes in turn, is held to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from triptych.errors import DeadlineExceeded


def remaining_s(context: grpc.aio.ServicerContext[Any, Any], default_s: float) -> float:
    """Seconds until the deadline of the call behind `context`, at least 0; `default_s` when the caller set none."""
    remaining = context.time_remaining()
    return default_s if remaining is None else max(0.0, remaining)


@dataclass(frozen=True)
class Deadline:
    """A point on a monotonic clock."""

    at_s: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        return cls(clock() + timeout_s, clock)

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext[Any, Any], default_s: float) -> Deadline:
        """The deadline of the call behind `context`; `default_s` from now when the caller set none."""
        return cls.after(remaining_s(context, default_s))

    def remaining_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.at_s - self.clock())

    def next_hop_s(self, what: str) -> float:
        """Timeout for a call to another actor that is to do `what`. Raises DeadlineExceeded when no time is left."""
        remaining = self.remaining_s()
        if remaining <= 0:
            raise DeadlineExceeded(f"no time left to {what}")
        return remaining
