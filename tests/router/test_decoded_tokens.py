"""Tokens of a step stream go on at once, but never before the prefill's first one or after an error."""

from __future__ import annotations

import asyncio

import pytest

from router.dispatch.decoded_tokens import DecodedTokens
from router.dispatch.token_queue import Tokens
from triptych.errors import Unavailable


async def test_tokens_are_kept_until_they_are_let_through() -> None:
    passed: list[Tokens] = []
    decoded = DecodedTokens(passed.append)
    decoded.put(Tokens((1,)))
    decoded.put(Tokens((2,)))
    assert passed == []
    decoded.let_through()
    decoded.put(Tokens((3,)))
    assert [tokens.token_ids for tokens in passed] == [(1,), (2,), (3,)]


async def test_an_error_counts_behind_the_tokens_that_came_before_it() -> None:
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    passed: list[Tokens] = []
    decoded = DecodedTokens(passed.append)
    decoded.put(Tokens((1,)))
    decoded.fail(Unavailable("gone"))
    decoded.fail(Unavailable("gone twice"))
    decoded.let_through()
    assert len(passed) == 1
    with pytest.raises(Unavailable, match=r"gone$"):
        await decoded.wait_for(answered)


async def test_an_answer_that_is_complete_is_not_spoilt_by_the_end_of_its_stream() -> None:
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    decoded = DecodedTokens(lambda tokens: answered.set_result(None))
    decoded.let_through()
    waiting = asyncio.create_task(decoded.wait_for(answered))
    await asyncio.sleep(0)
    decoded.put(Tokens((1,)))
    decoded.fail(Unavailable("gone"))
    await waiting
