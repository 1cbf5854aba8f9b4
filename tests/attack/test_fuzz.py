"""Random requests, and real media files with random bytes changed: only codes of the error table, never a hang.

The examples are the same in every run; `--hypothesis-seed=0` with `derandomize=False` looks for new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest
import pytest_asyncio
from actor_calls import ActorCalls
from attack_helpers import TABLE_CODES, Attacker, Outcome, chat, circle, message, text_part
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from harness import ONE_OF_EACH, InProcessSystem
from hostile_pictures import encoded, noise
from hostile_videos import video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.models_folder import BUILT_IN_FOLDER
from triptych.v1 import common_pb2, inference_pb2, tensor_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWERED_WITHIN_S = 10.0
BATCH = 8
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PICTURES = (circle(), *(encoded(noise(60, 44), name) for name in FORMATS), encoded(noise(), "JPEG", progressive=True))
VIDEOS = (
    *(video(container=name) for name in ("mp4", "matroska", "avi")),
    video(is_fragmented=True),
    video(container="avi", codec="mpeg4"),
)

reproducible = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calls() -> AsyncIterator[ActorCalls]:
    transport = {"unknown_ticket_wait_s": 0.05}
    control = {"health_timeout_s": 0.2}
    async with InProcessSystem(BUILT_IN_FOLDER, ONE_OF_EACH, transport=transport, control=control) as system:
        attacker = Attacker(system)
        await attacker.check_aftermath()
        calls = ActorCalls(attacker)
        yield calls
        await calls.close()
        await attacker.close()


@st.composite
def mutated(draw: st.DrawFn, files: Sequence[bytes]) -> bytes:
    """A file with some bytes changed, most of them near its start, and perhaps cut."""
    data = bytearray(draw(st.sampled_from(files)))
    places = st.one_of(st.integers(0, min(200, len(data) - 1)), st.integers(0, len(data) - 1))
    for place, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        data[place] = value
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


pictures = st.one_of(mutated(PICTURES), mutated(PICTURES), st.binary(max_size=40))
videos = st.one_of(mutated(VIDEOS), mutated(VIDEOS), st.binary(max_size=40))
numbers = st.floats(allow_nan=True, allow_infinity=True)
texts = st.one_of(st.text(max_size=30), st.sampled_from(["Hello!", "<|image_pad|>", "<|im_end|>", "What is it?"]))
roles = st.sampled_from(["user", "user", "user", "system", "assistant", "tool", ""])

parts = st.one_of(
    st.builds(inference_pb2.ContentPart, text=texts),
    st.builds(inference_pb2.ContentPart, image=st.builds(inference_pb2.Image, data=pictures)),
    st.builds(inference_pb2.ContentPart, video=st.builds(inference_pb2.Video, data=videos)),
    st.builds(
        inference_pb2.ContentPart,
        video=st.builds(
            inference_pb2.Video,
            frames=st.builds(
                common_pb2.VideoFrames,
                frames=st.lists(st.one_of(st.just(circle()), pictures), max_size=3),
                frames_per_second=st.one_of(st.just(2.0), numbers),
            ),
        ),
    ),
    st.just(inference_pb2.ContentPart()),
)
constraints = st.one_of(
    st.builds(common_pb2.Constraint),
    st.builds(
        common_pb2.Constraint,
        json_schema=st.sampled_from(
            ['{"type": "integer"}', '{"type": "no such"}', "{", "[]", '{"$ref": "#/nowhere"}', ""]
        ),
    ),
    st.builds(common_pb2.Constraint, regex=st.sampled_from(["[a-c]{1,3}", "(", "(?=a)b", "(a*)*b", "a{100000}", ""])),
    st.builds(common_pb2.Constraint, json_object=st.booleans()),
    st.builds(
        common_pb2.Constraint,
        choices=st.builds(common_pb2.Constraint.Choices, texts=st.lists(st.text(max_size=4), max_size=3)),
    ),
)
samplings = st.builds(
    common_pb2.SamplingParameters,
    max_tokens=st.one_of(st.integers(1, 6), st.integers(0, 6)),
    temperature=st.one_of(st.none(), st.floats(0, 2), numbers),
    top_p=st.one_of(st.none(), st.floats(0, 1), numbers),
    top_k=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    stop=st.lists(st.text(max_size=3), max_size=2),
    stop_token_ids=st.lists(st.integers(0, 1_030), max_size=3),
    ignore_eos=st.booleans(),
    min_tokens=st.one_of(st.just(0), st.integers(0, 8)),
    n=st.one_of(st.none(), st.integers(0, 4), st.integers(0, 2**32 - 1)),
    logprobs=st.one_of(st.none(), st.integers(0, 30)),
    presence_penalty=st.one_of(st.none(), st.floats(-2, 2), numbers),
    frequency_penalty=st.one_of(st.none(), st.floats(-2, 2), numbers),
    repetition_penalty=st.one_of(st.none(), st.floats(0.1, 2), numbers),
    logit_bias=st.dictionaries(
        st.integers(0, 1_100), st.one_of(st.floats(-100, 100, width=32), st.floats(width=32)), max_size=2
    ),
    constraint=st.one_of(st.none(), st.none(), constraints),
)
requests = st.builds(
    inference_pb2.GenerateRequest,
    request_id=st.one_of(st.just(""), st.text(max_size=8)),
    model=st.sampled_from(["", "", "tiny", "other"]),
    messages=st.lists(st.builds(inference_pb2.ChatMessage, role=roles, parts=st.lists(parts, max_size=3)), max_size=3),
    sampling=samplings,
)


async def check_all(attacker: Attacker, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.code is grpc.StatusCode.OK or outcome.code in TABLE_CODES, f"{outcome.code}: {outcome.message}"
        assert outcome.seconds < ANSWERED_WITHIN_S, f"{outcome.seconds:.1f} s: {outcome.message}"
    await attacker.system.wait_until_nothing_is_held()


@given(batch=st.lists(requests, min_size=BATCH, max_size=BATCH))
@reproducible
async def test_random_requests(calls: ActorCalls, batch: list[inference_pb2.GenerateRequest]) -> None:
    attacker = calls.attacker
    await check_all(attacker, await asyncio.gather(*(attacker.generate(request) for request in batch)))


@given(batch=st.lists(st.one_of(pictures.map(lambda data: ("image", data)), videos.map(lambda data: ("video", data)))))
@reproducible
async def test_damaged_media(calls: ActorCalls, batch: list[tuple[str, bytes]]) -> None:
    """Each is answered or refused as what it is: INVALID_ARGUMENT that names its field, nothing else."""
    attacker = calls.attacker
    kinds = {"image": inference_pb2.Image, "video": inference_pb2.Video}
    asked = [
        chat(message("user", inference_pb2.ContentPart(**{kind: kinds[kind](data=data)}), text_part("?")), max_tokens=2)
        for kind, data in batch
    ]
    outcomes = await asyncio.gather(*(attacker.generate(request) for request in asked))
    await check_all(attacker, outcomes)
    for (kind, _), outcome in zip(batch, outcomes, strict=True):
        if outcome.code is not grpc.StatusCode.OK:
            assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT, outcome.message
            assert outcome.field.startswith(f"messages[0].parts[0].{kind}"), outcome.field
    await attacker.check_aftermath()


@given(data=st.data())
@reproducible
async def test_random_calls_to_actors(calls: ActorCalls, data: st.DataObject) -> None:
    """Good requests of a walk with a few fields changed anywhere in them."""
    good = calls.requests()
    assert good.prefill is not None
    send: list[tuple[Message, Callable[[Any, float], Awaitable[Outcome]]]] = [
        (good.shares[0].request, calls.encode),
        (good.prefill, calls.run_prefill),
        (good.decode, calls.run_decode),
    ]
    for request, _ in send:
        for _ in range(data.draw(st.integers(0, 3))):
            change_somewhere(request, data)
    outcomes = await asyncio.gather(*(call(request, 1.0) for request, call in send))
    for member, ticket in (
        (calls.encoder, good.shares[0].request.items[0].ticket),
        (calls.prefill, good.prefill.kv_ticket),
    ):
        if ticket.ticket_id:
            await calls.release(member, [ticket.ticket_id])
    await check_all(calls.attacker, outcomes)


@given(batch=st.lists(st.builds(tensor_pb2.FetchRequest, ticket_id=texts, lane=texts, first_row=st.integers(0, 99))))
@reproducible
async def test_random_fetches(calls: ActorCalls, batch: list[tensor_pb2.FetchRequest]) -> None:
    outcomes = await asyncio.gather(
        *(
            calls.fetch(calls.encoder, ticket_id=request.ticket_id, lane=request.lane, first_row=request.first_row)
            for request in batch
        )
    )
    await check_all(calls.attacker, outcomes)


def change_somewhere(request: Message, data: st.DataObject) -> None:
    """Walks down to a random field and gives it a random value of its type."""
    field = data.draw(st.sampled_from(list(request.DESCRIPTOR.fields)))
    value = getattr(request, field.name)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if not field.is_repeated:
            change_somewhere(value, data)
        elif len(value):
            change_somewhere(data.draw(st.sampled_from(list(value))), data)
        return
    if not field.is_repeated:
        setattr(request, field.name, data.draw(_values(field)))
    elif len(value) and data.draw(st.booleans()):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(_values(field))
    else:
        value.append(data.draw(_values(field)))


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    return {
        FieldDescriptor.TYPE_STRING: st.one_of(st.just(""), st.text(max_size=9)),
        FieldDescriptor.TYPE_BYTES: st.binary(max_size=20),
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_DOUBLE: numbers,
        FieldDescriptor.TYPE_ENUM: st.integers(0, 9),
        FieldDescriptor.TYPE_UINT32: st.one_of(st.integers(0, 70), st.integers(0, 2**32 - 1)),
        FieldDescriptor.TYPE_UINT64: st.one_of(st.integers(0, 70), st.integers(0, 2**64 - 1)),
    }[field.type]
