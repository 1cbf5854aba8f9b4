"""Which of several errors of one walk began it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from router.dispatch.remote_failure import RETRYABLE

# A consumer may hear of its producer's failure sooner than the router does. So long the error of a leg waits for the
# legs before it to fail too; theirs, being nearer to the cause, is then the one that is told.
FIRST_CAUSE_GRACE_S = 0.2


async def wait_for_earlier_failures(earlier: Collection[asyncio.Task[Any]]) -> None:
    """Gives the legs before a failed one time to fail themselves, in which case the task group cancels this wait."""
    pending = [leg for leg in earlier if not leg.done()]
    if pending:
        await asyncio.wait(pending, timeout=FIRST_CAUSE_GRACE_S * len(pending))


def first_cause(failures: BaseExceptionGroup[Exception]) -> Exception:
    """The error to tell: one that no other attempt can mend before one that might be, else the first that came."""
    errors = list(_leaves(failures))
    return next((error for error in errors if not isinstance(error, RETRYABLE)), errors[0])


def _leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    leaves: list[Exception] = []
    for error in group.exceptions:
        leaves.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return leaves
