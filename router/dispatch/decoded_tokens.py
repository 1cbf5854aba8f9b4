"""What comes on a step stream for one walk, on its way to the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.dispatch.token_queue import Tokens

OnTokens = Callable[[Tokens], None]


class DecodedTokens:
    """Hands tokens on in the call that brings them: a task that took each step's from a queue would cost the router
    more than all else it does with them.

    Until `let_through` they are kept: the first token of a prefill actor goes before them. Those that came before an
    error are handed on before it counts.
    """

    def __init__(self, on_tokens: OnTokens) -> None:
        """`on_tokens` gets everything that comes, of all answers of the walk."""
        self._on_tokens = on_tokens
        self._kept: list[Tokens] | None = []
        self._error: Exception | None = None
        self._answered: asyncio.Future[None] | None = None

    def put(self, tokens: Tokens) -> None:
        """Tokens of a step."""
        if self._kept is None:
            self._on_tokens(tokens)
        else:
            self._kept.append(tokens)

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        if self._error is not None:
            return
        self._error = error
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

    def let_through(self) -> None:
        """Hands on what was kept, and from now on everything at once."""
        kept, self._kept = self._kept or [], None
        for tokens in kept:
            self._on_tokens(tokens)

    async def wait_for(self, answered: asyncio.Future[None]) -> None:
        """Returns when `answered` is done; raises what `fail` was given when that was before."""
        if not answered.done() and self._error is not None:
            raise self._error
        self._answered = answered
        await answered
