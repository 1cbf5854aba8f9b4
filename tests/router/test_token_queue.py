from __future__ import annotations

import asyncio

import pytest
from memory_bound import MIB, bounded_memory

from router.dispatch.step_streams import tokens_of
from router.dispatch.token_queue import MAX_LOGPROBS, TokenQueue, Tokens
from triptych.errors import Unavailable
from triptych.v1 import common_pb2, language_pb2

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


async def test_logprobs_are_taken_in_pieces_and_none_is_lost() -> None:
    queue = TokenQueue((0, 1))
    for token_id in range(150):
        queue.put(Tokens((token_id,), logprobs=(bytes([token_id]),)))
    queue.put(Tokens((7,), STOP, 1))
    queue.put(Tokens((), STOP, 0))
    taken = [await queue.take() for _ in range(4)]
    assert queue.is_done
    assert [(tokens.choice_index, len(tokens.token_ids), tokens.is_last) for tokens in taken] == [
        (0, MAX_LOGPROBS, False),
        (1, 1, True),  # The other answer does not wait for all of this one.
        (0, MAX_LOGPROBS, False),
        (0, 150 - 2 * MAX_LOGPROBS, True),
    ]
    ids = [token_id for tokens in taken if not tokens.choice_index for token_id in tokens.token_ids]
    logprobs = [logprob for tokens in taken for logprob in tokens.logprobs]
    assert ids == list(range(150)) and logprobs == [bytes([token_id]) for token_id in ids]


def test_tokens_that_nobody_reads_do_not_keep_the_steps_that_they_came_in() -> None:
    """Every step has the logprobs of 32 requests, one of which is not read."""
    step = language_pb2.StreamStepsResponse()
    for _ in range(32):
        logprob = step.outputs.add(request_id="r" * 40, token_ids=[300]).logprobs.add(token_id=300, logprob=-1.5)
        for number in range(20):
            logprob.top.add(token_id=1_000 + number, logprob=-2.5 - number)
    message, queue = step.SerializeToString(), TokenQueue()
    with bounded_memory(16 * MIB):  # The steps themselves take 50 KB each.
        for _ in range(1_000):
            queue.put(tokens_of(language_pb2.StreamStepsResponse.FromString(message).outputs[0]))
