"""Tokens of one request on their way from a step stream to its client."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from triptych.v1 import common_pb2

ENDS_NOT = common_pb2.FINISH_REASON_UNSPECIFIED
# Tokens with logprobs that are taken at once: a client that comes back to a long answer must not hold up the others
# while all of it is written for it. 64 with 20 alternatives each take some milliseconds.
MAX_LOGPROBS = 64


@dataclass(frozen=True)
class Tokens:
    """New tokens of one answer; `finish_reason` is set (not FINISH_REASON_UNSPECIFIED) on the last, which may be none.

    logprobs: one for each token, or none at all; each a TokenLogprob on the wire, which takes a tenth of the message's
    memory while nobody reads it.
    """

    token_ids: tuple[int, ...]
    finish_reason: common_pb2.FinishReason = ENDS_NOT
    choice_index: int = 0
    logprobs: tuple[bytes, ...] = ()

    @property
    def is_last(self) -> bool:
        """Nothing of this answer comes after these."""
        return self.finish_reason != ENDS_NOT


@dataclass
class _Pending:
    """What the reader has not taken of one answer."""

    token_ids: array[int] = field(default_factory=lambda: array("q"))
    logprobs: list[bytes] = field(default_factory=list)
    finish_reason: common_pb2.FinishReason = ENDS_NOT

    def add(self, tokens: Tokens) -> None:
        self.token_ids.extend(tokens.token_ids)
        self.logprobs.extend(tokens.logprobs)
        self.finish_reason = tokens.finish_reason

    def take(self, num_tokens: int) -> Tokens:
        """The first so many, which have not the last among them."""
        token_ids, logprobs = tuple(self.token_ids[:num_tokens]), tuple(self.logprobs[:num_tokens])
        del self.token_ids[:num_tokens], self.logprobs[:num_tokens]
        return Tokens(token_ids, logprobs=logprobs)


class TokenQueue:
    """One writer, one reader, one or several answers. What the reader has not taken is one array of integers for each,
    so a stopped client costs no more.

    Tokens that came before an error are read before the error is raised.
    """

    def __init__(self, choices: Collection[int] = (0,)) -> None:
        self._pending: dict[int, _Pending] = {}
        self._unfinished = set(choices)
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._settled: asyncio.Future[None] | None = None

    @property
    def is_done(self) -> bool:
        """The last tokens of every answer were taken."""
        return not self._unfinished and not self._pending

    def put(self, tokens: Tokens) -> None:
        """Adds tokens; what comes after the last ones of an answer is ignored."""
        if tokens.choice_index not in self._unfinished:
            return
        pending = self._pending.get(tokens.choice_index)
        if pending is None:
            pending = self._pending[tokens.choice_index] = _Pending()
        pending.add(tokens)
        if tokens.is_last:
            self._unfinished.discard(tokens.choice_index)
            self._settle_when_ended()
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """The writer can't go on; ignored after the last tokens of all answers and after a first error."""
        if self._unfinished and self._error is None:
            self._error = error
            self._changed.set()
            self._settle_when_ended()

    async def settle(self, delay_s: float) -> None:
        """Lets tokens gather: returns after `delay_s`, or as soon as nothing more will come."""
        if delay_s <= 0 or self._has_ended:
            return
        loop = asyncio.get_running_loop()
        self._settled = settled = loop.create_future()
        timer = loop.call_later(delay_s, _wake, settled)
        try:
            await settled
        finally:
            timer.cancel()

    async def wait(self) -> None:
        """Returns when there is something to take; raises what `fail` was given when nothing is and will be."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    async def take(self) -> Tokens:
        """Everything of one answer that has come since it was last taken, or MAX_LOGPROBS tokens of it where it has
        logprobs, waiting for something to come; raises what `fail` was given."""
        await self.wait()
        index = next(iter(self._pending))
        taken = self._pending.pop(index)
        if len(taken.logprobs) > MAX_LOGPROBS:
            self._pending[index] = taken
            return replace(taken.take(MAX_LOGPROBS), choice_index=index)
        return Tokens(tuple(taken.token_ids), taken.finish_reason, index, tuple(taken.logprobs))

    @property
    def _has_ended(self) -> bool:
        return not self._unfinished or self._error is not None

    def _settle_when_ended(self) -> None:
        if self._settled is not None and self._has_ended:
            _wake(self._settled)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
