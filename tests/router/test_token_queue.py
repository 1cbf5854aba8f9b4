from __future__ import annotations

import asyncio

import pytest

from router.dispatch.token_queue import TokenQueue, Tokens
from triptych.errors import Unavailable
from triptych.v1 import common_pb2

STOP = common_pb2.FINISH_REASON_STOP


async def test_what_was_not_read_is_one_list() -> None:
    queue = TokenQueue()
    for token_id in range(1_000):
        queue.put(Tokens((token_id,)))
    assert (await queue.take()).token_ids == tuple(range(1_000))
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.put(Tokens((7,), STOP))
    tokens = await waiting
    assert tokens.token_ids == (7,) and tokens.is_last


async def test_tokens_come_before_the_error() -> None:
    queue = TokenQueue()
    queue.put(Tokens((1,)))
    queue.fail(Unavailable("gone"))
    assert (await queue.take()).token_ids == (1,)
    for _ in range(2):
        with pytest.raises(Unavailable, match="gone"):
            await queue.take()


async def test_nothing_counts_after_the_last_tokens() -> None:
    queue = TokenQueue()
    queue.put(Tokens((1,), STOP))
    queue.put(Tokens((2,)))
    queue.fail(Unavailable("gone"))
    tokens = await queue.take()
    assert tokens == Tokens((1,), STOP)
