"""Chunks gather tokens while many answers run, and never hold back the first ones or the end."""

from __future__ import annotations

import asyncio
import time

from fake_actors import FakeSystem
from router_helpers import text_part, user_request
from test_walk import Answer, ask

from router.dispatch.chunk_pace import ChunkPace
from router.dispatch.token_queue import TokenQueue, Tokens
from triptych.v1 import common_pb2


def test_the_interval_grows_with_the_answers_that_run() -> None:
    pace = ChunkPace(1_000.0)
    for _ in range(5):
        pace.begin_answer()
    assert pace.interval_s == 0.005
    for _ in range(5):
        pace.end_answer()
    assert pace.interval_s == 0.0


async def test_tokens_gather_until_the_delay_is_over_or_the_answer_ends() -> None:
    queue = TokenQueue()
    queue.put(Tokens((1,)))
    started_s = time.monotonic()
    await queue.settle(0.05)
    assert time.monotonic() - started_s >= 0.049
    asyncio.get_running_loop().call_later(0.02, queue.put, Tokens((2,), common_pb2.FINISH_REASON_STOP))
    await queue.settle(60.0)
    await queue.settle(60.0)
    assert (await queue.take()).token_ids == (1, 2)


async def test_an_error_ends_the_gathering() -> None:
    queue = TokenQueue()
    asyncio.get_running_loop().call_later(0.01, queue.fail, RuntimeError("broken"))
    await queue.settle(60.0)


async def test_many_answers_get_few_chunks_each_and_every_token() -> None:
    async with FakeSystem("prefill_decode", router={"max_chunks_per_s": 20.0}) as system:
        system.actors["prefill_decode-0"].step_s = 0.005
        answers = [Answer() for _ in range(8)]
        request = user_request(text_part("hello"), max_tokens=40)
        await asyncio.gather(*(ask(system, request, answer=answer) for answer in answers))
    assert all(answer.token_ids == answer.expected and len(answer.token_ids) == 40 for answer in answers)
    # 40 steps of 5 ms are half of the 0.4 s between two chunks of an answer: the first token, then the rest.
    assert all(len(answer.chunks) <= 4 for answer in answers)


async def test_a_lone_answer_gets_its_tokens_as_they_come() -> None:
    async with FakeSystem("prefill_decode") as system:
        system.actors["prefill_decode-0"].step_s = 0.01
        answer = await ask(system, user_request(text_part("hello"), max_tokens=10))
    # All at once, or the first and the rest, where the pace held them back; a busy machine may join a few.
    assert len(answer.chunks) >= 4
