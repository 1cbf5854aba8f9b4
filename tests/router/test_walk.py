"""The walk over fake actors: what is called, in which order tokens come, and what happens when something fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from fake_actors import FakeSystem, token_at
from router_helpers import image_part, png, text_part, user_request

from triptych.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    TriptychError,
    Unavailable,
)
from triptych.rpc.deadline import Deadline
from triptych.v1 import common_pb2, inference_pb2

SPLIT = ("encoder", "prefill", "decode")


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    chunks: list[inference_pb2.TokenChunk] = field(default_factory=list)
    summary: inference_pb2.GenerateSummary | None = None

    @property
    def expected(self) -> list[int]:
        assert self.summary is not None
        first = self.summary.usage.prompt_tokens
        return [token_at(position) for position in range(first, first + len(self.token_ids))]


async def ask(
    system: FakeSystem, request: inference_pb2.GenerateRequest, timeout_s: float = 10.0, answer: Answer | None = None
) -> Answer:
    answer = answer or Answer()
    async for response in system.dispatcher.generate(request, Deadline.after(timeout_s)):
        if response.WhichOneof("message") == "summary":
            answer.summary = response.summary
            continue
        answer.chunks.append(response.chunk)
        answer.token_ids.extend(response.chunk.token_ids)
    return answer


def picture_request(num_pictures: int = 1, max_tokens: int = 8) -> inference_pb2.GenerateRequest:
    colors = ("red", "green", "blue", "white")[:num_pictures]
    return user_request(*(image_part(png(color=color)) for color in colors), text_part("?"), max_tokens=max_tokens)


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_idle(system: FakeSystem) -> None:
    await until(lambda: not any(actor.num_running for actor in system.actors.values()))


async def until_called(system: FakeSystem) -> None:
    await until(lambda: all(actor.requests for actor in system.actors.values()))


def no_load(system: FakeSystem) -> bool:
    return all(system.dispatcher.load_of(actor_id) == 0 for actor_id in system.actors) and not (
        system.dispatcher.num_pending
    )


async def test_split_walk() -> None:
    async with FakeSystem("encoder", "encoder", "prefill", "decode") as system:
        answer = await ask(system, picture_request(2))
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 8
        summary = answer.summary
        assert summary.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert summary.usage.completion_tokens == 8 and summary.usage.media_tokens > 0
        assert sorted(summary.route.encoder_actors) == ["encoder-0", "encoder-1"]
        assert (summary.route.prefill_actor, summary.route.decode_actor) == ("prefill-0", "decode-0")
        assert (summary.route.kv_lane, summary.route.attempts) == ("grpc", 1)
        assert (summary.timings.encode_s, summary.timings.prefill_s, summary.timings.decode_s) == (0.5, 0.25, 0.125)
        assert 0 < summary.timings.prepare_s <= summary.timings.time_to_first_token_s <= summary.timings.total_s
        assert no_load(system)
        tickets = {i.ticket.ticket_id for n in (0, 1) for i in system.actors[f"encoder-{n}"].requests[0].items}
        prompt = system.actors["prefill-0"].requests[0].prompt
        assert {placement.ticket.ticket_id for placement in prompt.media} == tickets
        assert system.actors["prefill-0"].requests[0].kv_ticket.shape[0] == -(-len(prompt.token_ids) // 16)
        assert not system.tensors.released


async def test_prefill_decode_alone_needs_no_kv_ticket() -> None:
    async with FakeSystem("encoder", "prefill_decode") as system:
        answer = await ask(system, picture_request())
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 8
        assert not system.actors["prefill_decode-0"].requests[0].HasField("kv_ticket")
        assert answer.summary.route.prefill_actor == answer.summary.route.decode_actor == "prefill_decode-0"


async def test_colocated_sends_the_picture_itself() -> None:
    async with FakeSystem("prefill_decode", disaggregated=False) as system:
        answer = await ask(system, picture_request())
        assert answer.token_ids == answer.expected
        [placement] = system.actors["prefill_decode-0"].requests[0].prompt.media
        assert placement.media.data == png() and not answer.summary.route.encoder_actors


async def test_text_goes_past_the_encoder() -> None:
    async with FakeSystem("prefill", "decode") as system:
        answer = await ask(system, user_request(text_part("hello"), max_tokens=3))
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 3


async def test_all_stages_are_called_at_once() -> None:
    async with FakeSystem(*SPLIT) as system:
        system.actors["encoder-0"].gate.clear()
        asking = asyncio.create_task(ask(system, picture_request()))
        await until_called(system)
        assert system.dispatcher.load_of("encoder-0") > 0
        system.actors["encoder-0"].gate.set()
        answer = await asking
        assert answer.token_ids == answer.expected


async def test_a_first_token_that_ends_the_answer_ends_the_walk() -> None:
    async with FakeSystem(*SPLIT) as system:
        system.actors["prefill-0"].first_token_finish = common_pb2.FINISH_REASON_STOP
        system.actors["decode-0"].decode_gate.clear()
        answer = await ask(system, picture_request())
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 1
        assert answer.summary.finish_reason == common_pb2.FINISH_REASON_STOP
        await until_idle(system)


async def test_a_stop_string_ends_the_decode() -> None:
    async with FakeSystem("prefill", "decode") as system:
        request = user_request(text_part("hello"), max_tokens=500)
        whole = "".join(chunk.text for chunk in (await ask(system, request)).chunks)
        system.actors["decode-0"].step_s = 0.005
        stop = whole[40:44]
        request.sampling.stop.append(stop)
        answer = await ask(system, request)
        assert "".join(chunk.text for chunk in answer.chunks) == whole[: whole.index(stop)]
        assert answer.summary.finish_reason == common_pb2.FINISH_REASON_STOP
        assert answer.summary.usage.completion_tokens == len(answer.token_ids) < 500
        await until_idle(system)
        assert system.actors["decode-0"].num_cancelled == 1


async def test_the_encoders_refusal_wins_and_names_the_clients_field() -> None:
    async with FakeSystem(*SPLIT) as system:
        cut_off = "items[0].media.data is not a readable image: cut off"
        system.actors["encoder-0"].failure = InvalidRequest(cut_off, field="items[0].media.data")
        system.actors["prefill-0"].failure = Unavailable("embedding never came")
        with pytest.raises(InvalidRequest) as caught:
            await ask(system, picture_request())
        assert caught.value.field == "messages[0].parts[0].image.data"
        assert caught.value.message == "messages[0].parts[0].image.data is not a readable image: cut off"
        await until_idle(system)
        assert no_load(system)
        system.actors["encoder-0"].failure = system.actors["prefill-0"].failure = None
        assert len((await ask(system, picture_request())).token_ids) == 8


@pytest.mark.parametrize("stage", SPLIT)
async def test_a_full_stage_is_told_and_ends_the_other_legs(stage: str) -> None:
    async with FakeSystem(*SPLIT) as system:
        for actor in system.actors.values():
            actor.gate.clear()
        failing = system.actors[f"{stage}-0"]
        # There would be no time for what the stage advises.
        failing.failure = Overloaded("full", field="f", retry_after_s=60.0)
        asking = asyncio.create_task(ask(system, picture_request()))
        # A call that is cancelled on its way never arrives: all of them must have.
        await until(lambda: all(actor.requests for actor in system.actors.values()))
        failing.gate.set()
        with pytest.raises(Overloaded) as caught:
            await asking
        assert caught.value.retry_after_s == 60.0
        await until_idle(system)
        assert sum(actor.num_cancelled for actor in system.actors.values()) == 2
        assert no_load(system)


@pytest.mark.parametrize("stage", SPLIT)
async def test_work_goes_on_elsewhere_when_an_actor_says_unavailable(stage: str) -> None:
    async with FakeSystem(*SPLIT) as system:
        system.actors[f"{stage}-0"].failure = Unavailable("draining")
        other = await system.add(stage)
        answer = await ask(system, picture_request())
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 8
        assert other.requests and answer.summary.route.attempts == 2
        assert not system.lost


@pytest.mark.parametrize("stage", SPLIT)
async def test_a_dead_actor_is_reported_and_its_replacement_awaited(stage: str) -> None:
    async with FakeSystem(*SPLIT) as system:
        await system.actors[f"{stage}-0"].die()
        asking = asyncio.create_task(ask(system, picture_request()))
        await until(lambda: bool(system.lost))
        assert system.lost == [f"{stage}-0"] and not asking.done()
        await system.add(stage)
        answer = await asking
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 8


async def test_a_decode_that_dies_half_way_is_resumed_without_gap_or_repeat() -> None:
    async with FakeSystem(*SPLIT) as system:
        system.actors["decode-0"].dies_after, system.actors["decode-0"].step_s = 5, 0.02
        await system.add("decode")
        answer = await ask(system, picture_request(max_tokens=12))
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 12
        assert answer.summary.route.attempts == 2 and answer.summary.usage.completion_tokens == 12
        first, second = system.actors["prefill-0"].requests
        num_resumed = len(second.prompt.token_ids) - len(first.prompt.token_ids)
        assert 1 <= num_resumed <= 5
        assert list(second.prompt.token_ids[-num_resumed:]) == answer.token_ids[:num_resumed]
        assert second.sampling.max_tokens == 12 - num_resumed and second.sampling.seed == first.sampling.seed
        assert first.request_id != second.request_id


async def test_attempts_are_bounded() -> None:
    async with FakeSystem(*SPLIT, router={"max_attempts": 3}) as system:
        system.actors["encoder-0"].failure = Unavailable("broken")
        with pytest.raises(Unavailable, match="broken"):
            await ask(system, picture_request())
        assert len(system.actors["encoder-0"].requests) == 3


async def test_a_missing_stage_is_named_at_the_deadline() -> None:
    async with FakeSystem("prefill", "decode") as system:
        begun_at = time.monotonic()
        with pytest.raises(Unavailable, match="stage encoder") as caught:
            await ask(system, picture_request(), timeout_s=0.3)
        assert 0.25 < time.monotonic() - begun_at < 2
        assert caught.value.field == "stages.encoder.replicas"


@pytest.mark.parametrize("stage", SPLIT)
async def test_the_deadline_reaches_every_leg(stage: str) -> None:
    async with FakeSystem(*SPLIT) as system:
        system.actors[f"{stage}-0"].gate.clear()
        with pytest.raises(DeadlineExceeded):
            await ask(system, picture_request(), timeout_s=0.4)
        await until_idle(system)
        assert no_load(system)


async def test_closing_the_answer_cancels_every_leg() -> None:
    async with FakeSystem(*SPLIT) as system:
        system.actors["prefill-0"].gate.clear()
        asking = asyncio.create_task(ask(system, picture_request()))
        await until_called(system)
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until_idle(system)
        assert system.actors["prefill-0"].num_cancelled == system.actors["decode-0"].num_cancelled == 1
        assert no_load(system)
        [item] = system.actors["encoder-0"].requests[0].items
        await until(lambda: item.ticket.ticket_id in system.tensors.released)


async def test_requests_over_the_limit_are_turned_away_and_the_next_one_works() -> None:
    async with FakeSystem("prefill", "decode", limits={"max_pending_requests": 1}) as system:
        system.actors["prefill-0"].gate.clear()
        request = user_request(text_part("hello"), max_tokens=2)
        first = asyncio.create_task(ask(system, request))
        await until(lambda: bool(system.actors["prefill-0"].requests))
        with pytest.raises(Overloaded, match="max_pending_requests"):
            await ask(system, request)
        system.actors["prefill-0"].gate.set()
        await first
        assert len((await ask(system, request)).token_ids) == 2


async def test_a_slow_reader_gets_what_came_meanwhile_in_one_chunk() -> None:
    async with FakeSystem("prefill", "decode") as system:
        request = user_request(text_part("hello"), max_tokens=300)
        answer = Answer()
        async for response in system.dispatcher.generate(request, Deadline.after(10)):
            answer.summary = response.summary
            answer.chunks.append(response.chunk)
            answer.token_ids.extend(response.chunk.token_ids)
            if len(answer.chunks) == 1:
                await asyncio.sleep(0.5)
        assert answer.token_ids == answer.expected and len(answer.token_ids) == 300
        assert len(answer.chunks) < 150


async def test_many_requests_share_one_stream_and_keep_apart() -> None:
    async with FakeSystem("encoder", "prefill", "prefill", "decode", "decode") as system:
        requests = [user_request(text_part("x" * n), max_tokens=5 + n) for n in range(1, 21)]
        answers = await asyncio.gather(*(ask(system, request) for request in requests))
        for number, answer in enumerate(answers, start=1):
            assert answer.token_ids == answer.expected and len(answer.token_ids) == 5 + number
        used = {answer.summary.route.decode_actor for answer in answers}
        assert used == {"decode-0", "decode-1"}
        assert no_load(system)


async def test_a_bug_in_an_actor_is_no_reason_to_try_again() -> None:
    async with FakeSystem(*SPLIT) as system:
        system.actors["prefill-0"].failure = ZeroDivisionError()  # type: ignore[assignment]
        with pytest.raises(TriptychError, match="internal error"):
            await ask(system, picture_request())
        assert len(system.actors["prefill-0"].requests) == 1
