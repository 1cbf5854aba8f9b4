"""Tokens of one request on their way from a step stream to its client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from triptych.v1 import common_pb2


@dataclass(frozen=True)
class Tokens:
    """New tokens; `finish_reason` is set (not FINISH_REASON_UNSPECIFIED) on the last ones, which may be none."""

    token_ids: tuple[int, ...]
    finish_reason: common_pb2.FinishReason = common_pb2.FINISH_REASON_UNSPECIFIED

    @property
    def is_last(self) -> bool:
        """Nothing comes after these."""
        return self.finish_reason != common_pb2.FINISH_REASON_UNSPECIFIED


class TokenQueue:
    """One writer, one reader. What the reader has not taken is one list of integers, so a stopped client costs no more.

    Tokens that came before an error are read before the error is raised.
    """

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._finish_reason: common_pb2.FinishReason = common_pb2.FINISH_REASON_UNSPECIFIED
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, tokens: Tokens) -> None:
        """Adds tokens; what comes after the last ones is ignored."""
        if self._finish_reason != common_pb2.FINISH_REASON_UNSPECIFIED:
            return
        self._token_ids.extend(tokens.token_ids)
        self._finish_reason = tokens.finish_reason
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """The writer can't go on; ignored after the last tokens and after a first error."""
        if self._finish_reason == common_pb2.FINISH_REASON_UNSPECIFIED and self._error is None:
            self._error = error
            self._changed.set()

    async def take(self) -> Tokens:
        """Everything that has come since the last call, waiting for something to come; raises what `fail` was given."""
        await self._changed.wait()
        tokens = Tokens(tuple(self._token_ids), self._finish_reason)
        self._token_ids.clear()
        if self._error is None and not tokens.is_last:
            self._changed.clear()
        if self._error is not None and not tokens.token_ids and not tokens.is_last:
            raise self._error
        return tokens
