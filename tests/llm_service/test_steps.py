"""One message a step, tokens joined for a slow reader, and no token lost or doubled when a stream changes hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from llm_service.logprobs import TokenLogprob
from llm_service.sequence import FinishReason
from llm_service.steps import StepStreams
from triptych.errors import TriptychError, Unavailable
from triptych.v1 import common_pb2, language_pb2

Message = language_pb2.StreamStepsResponse
GRACE_S = 0.1


@pytest.fixture
def steps() -> StepStreams:
    return StepStreams(GRACE_S)


def tokens_of(message: Message) -> dict[str, list[int]]:
    return {output.request_id: list(output.token_ids) for output in message.outputs}


def never(error: TriptychError) -> None:
    raise AssertionError(error)


async def next_message(messages: AsyncIterator[Message]) -> Message:
    async with asyncio.timeout(2):
        return await anext(messages)


async def test_a_step_is_one_message(steps: StepStreams) -> None:
    with steps.open("r", "a", never) as first, steps.open("r", "b", never) as second:
        async with aclosing(steps.read("r")) as messages:
            first.put([1])
            second.put([2])
            assert tokens_of(await next_message(messages)) == {"a": [1], "b": [2]}
            second.put([3], FinishReason.STOP)
            message = await next_message(messages)
            assert tokens_of(message) == {"b": [3]}
            assert message.outputs[0].finish_reason == common_pb2.FINISH_REASON_STOP
            first.on_lost = second.on_lost = lambda error: None


async def test_a_slow_reader_gets_joined_tokens(steps: StepStreams) -> None:
    with steps.open("r", "a", lambda error: None) as channel:
        async with aclosing(steps.read("r")) as messages:
            for token in range(500):
                channel.put([token])
            channel.put([], FinishReason.LENGTH)
            message = await next_message(messages)
            assert tokens_of(message) == {"a": list(range(500))}
            assert message.outputs[0].finish_reason == common_pb2.FINISH_REASON_LENGTH
            delivered = asyncio.create_task(channel.wait_delivered())
            await asyncio.sleep(0)
            assert not delivered.done(), "not before the message was written, which is when the next one is asked for"
            waiting = asyncio.create_task(next_message(messages))
            await asyncio.wait_for(delivered, 2)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def test_routers_get_their_own_requests_only(steps: StepStreams) -> None:
    ignore = lambda error: None  # noqa: E731
    with steps.open("r", "a", ignore) as first, steps.open("s", "b", ignore) as second:
        async with aclosing(steps.read("r")) as of_r, aclosing(steps.read("s")) as of_s:
            first.put([1])
            second.put([2])
            assert tokens_of(await next_message(of_r)) == {"a": [1]}
            assert tokens_of(await next_message(of_s)) == {"b": [2]}


async def test_a_request_may_come_before_its_stream(steps: StepStreams) -> None:
    with steps.open("r", "a", never) as channel:
        channel.put([1])
        async with aclosing(steps.read("r")) as messages:
            assert tokens_of(await next_message(messages)) == {"a": [1]}
            channel.on_lost = lambda error: None


async def test_without_a_stream_requests_end_after_the_grace(steps: StepStreams) -> None:
    errors: list[TriptychError] = []
    with steps.open("r", "a", errors.append):
        await asyncio.sleep(GRACE_S / 2)
        assert not errors
        await asyncio.sleep(GRACE_S)
        assert isinstance(errors[0], Unavailable)


async def test_a_broken_stream_ends_what_has_begun_and_spares_the_rest(steps: StepStreams) -> None:
    """Tokens that were handed to a broken stream may be lost; those of a request that sent none can't be."""
    lost: list[str] = []
    with (
        steps.open("r", "begun", lambda error: lost.append("begun")) as begun,
        steps.open("r", "fresh", lambda error: lost.append("fresh")) as fresh,
    ):
        async with aclosing(steps.read("r")) as messages:
            begun.put([1])
            await next_message(messages)
        assert lost == ["begun"]
        fresh.put([2])
        async with aclosing(steps.read("r")) as messages:
            assert tokens_of(await next_message(messages)) == {"fresh": [2]}
            await asyncio.sleep(GRACE_S * 1.5)
            assert lost == ["begun"], "the new stream came within the grace"


async def test_a_second_stream_takes_the_place_of_the_first(steps: StepStreams) -> None:
    with steps.open("r", "a", never) as channel:
        first, second = steps.read("r"), steps.read("r")
        waiting = asyncio.create_task(anext(first, None))
        await asyncio.sleep(0)
        channel.put([])  # wakes nobody with tokens, only makes sure that the first one is listening
        await asyncio.sleep(0)
        channel.on_lost = lambda error: None
        assert (await asyncio.wait_for(waiting, 2)) is not None
        taking_over = asyncio.create_task(anext(second))
        await asyncio.sleep(0)
        assert await asyncio.wait_for(anext(first, None), 2) is None
        channel.put([5])
        assert tokens_of(await asyncio.wait_for(taking_over, 2)) == {"a": [5]}
        await second.aclose()  # type: ignore[attr-defined]


async def test_the_word_that_a_request_was_aborted_goes_out(steps: StepStreams) -> None:
    async with aclosing(steps.read("r")) as messages:
        waiting = asyncio.create_task(next_message(messages))
        await asyncio.sleep(0)
        with steps.open("r", "a", never) as channel:
            channel.put([], FinishReason.ABORTED)
        with steps.open("r", "b", never) as channel:
            channel.put([1])
        message = await waiting
        assert [output.request_id for output in message.outputs] == ["a"]


async def test_close_ends_streams(steps: StepStreams) -> None:
    messages = steps.read("r")
    waiting = asyncio.create_task(anext(messages, None))
    await asyncio.sleep(0)
    steps.close()
    assert await asyncio.wait_for(waiting, 2) is None


async def test_choices_of_a_request_go_out_apart_and_end_together(steps: StepStreams) -> None:
    logprob = TokenLogprob(5, -0.5, ((5, -0.5), (6, -1.0)))
    with steps.open("r", "a", never, num_choices=2) as channel:
        async with aclosing(steps.read("r")) as messages:
            channel.put([4], choice_index=1)
            channel.put([5], choice_index=0, logprobs=[logprob])
            channel.put([6], FinishReason.STOP, choice_index=1)
            message = await next_message(messages)
            told = {output.choice_index: output for output in message.outputs}
            assert list(told[1].token_ids) == [4, 6] and told[1].finish_reason == common_pb2.FINISH_REASON_STOP
            assert list(told[0].token_ids) == [5] and not told[0].finish_reason
            assert [entry.token_id for entry in told[0].logprobs[0].top] == [5, 6] and not told[1].logprobs
            delivered = asyncio.create_task(channel.wait_delivered())
            following = asyncio.create_task(next_message(messages))
            await asyncio.sleep(0)
            assert not delivered.done()
            channel.put([], FinishReason.ABORTED, choice_index=0)
            assert [output.choice_index for output in (await following).outputs] == [0]
            following = asyncio.create_task(next_message(messages))
            await asyncio.wait_for(delivered, 2)
            following.cancel()
            await asyncio.wait([following])
