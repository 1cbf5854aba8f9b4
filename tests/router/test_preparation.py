"""Requests as clients send them, prepared with the shipped model's tokenizer and processing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from router_helpers import TINY_FOLDER, image_part, png, text_part, user_request

from router.dispatch.preparation import Preparation
from triptych.config import DeploymentConfig
from triptych.errors import InvalidRequest, NotFound, RequestTooLarge, TriptychError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.v1 import common_pb2, inference_pb2

MODEL = ModelConfig.from_folder(TINY_FOLDER)


def make_preparation(**overrides: Any) -> Preparation:
    return Preparation(DeploymentConfig.from_sources(overrides=overrides, environment={}), "tiny", TINY_FOLDER)


@pytest.fixture(scope="module")
def preparation() -> Preparation:
    return make_preparation()


def test_media_are_measured_and_placed_between_the_text(preparation: Preparation) -> None:
    frames = inference_pb2.Video(frames=common_pb2.VideoFrames(frames=[png(56, 56, c) for c in ("red", "blue")]))
    request = user_request(
        text_part("compare"), image_part(png(56, 84)), text_part("with"), inference_pb2.ContentPart(video=frames)
    )
    prepared = preparation.prepare_now(request)
    image, video = prepared.media
    assert (image.field, video.field) == ("messages[0].parts[1].image", "messages[0].parts[3].video")
    assert image.content_key != video.content_key
    for item, token in ((image, MODEL.image_token_id), (video, MODEL.video_token_id)):
        span = prepared.token_ids[item.offset : item.offset + item.num_tokens]
        assert set(span) == {token}
        assert item.num_tokens == item.num_patches // MODEL.vision.spatial_merge_size**2
    assert prepared.num_media_tokens == sum(
        token in (MODEL.image_token_id, MODEL.video_token_id) for token in prepared.token_ids
    )
    assert image.second_per_grid_t == 0 < video.second_per_grid_t


def test_the_same_picture_has_the_same_key(preparation: Preparation) -> None:
    request = user_request(image_part(png()), image_part(png(color="blue")), image_part(png()))
    first, second, third = preparation.prepare_now(request).media
    assert first.content_key == third.content_key != second.content_key


def test_the_answer_is_bounded_by_the_context_length(preparation: Preparation) -> None:
    short = make_preparation(stages={"decode": {"max_context_tokens": 64}})
    prepared = short.prepare_now(user_request(text_part("hello"), max_tokens=1_000))
    assert len(prepared.token_ids) + prepared.sampling.max_tokens == 64
    free = preparation.prepare_now(user_request(text_part("hello"), max_tokens=10))
    assert free.sampling.max_tokens == 10


def test_a_seed_is_drawn_once_where_none_is_given(preparation: Preparation) -> None:
    seeds = {preparation.prepare_now(user_request(text_part("hi"), temperature=1.0)).sampling.seed for _ in range(3)}
    assert len(seeds) == 3
    assert preparation.prepare_now(user_request(text_part("hi"), seed=7)).sampling.seed == 7


@pytest.mark.parametrize(
    ("parts", "thread"),
    [((text_part("hi"),), "MainThread"), ((text_part("hi " * 1_000),), "preparation"), ((image_part(png()),), "prep")],
)
async def test_what_takes_long_is_prepared_on_a_thread_of_its_own(
    preparation: Preparation,
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[inference_pb2.ContentPart, ...],
    thread: str,
) -> None:
    threads: list[str] = []
    prepare_now = preparation.prepare_now

    def watched(request: inference_pb2.GenerateRequest) -> Any:
        threads.append(threading.current_thread().name)
        return prepare_now(request)

    monkeypatch.setattr(preparation, "prepare_now", watched)
    await preparation.prepare(user_request(*parts))
    assert threads[0].startswith(thread)


Change = Callable[[inference_pb2.GenerateRequest], object]


@pytest.mark.parametrize(
    ("change", "kind", "field", "words"),
    [
        (lambda r: r.ClearField("messages"), InvalidRequest, "messages", "at least one"),
        (lambda r: setattr(r.messages[0], "role", "tool"), InvalidRequest, "messages[0].role", "system, user"),
        (lambda r: r.messages[0].ClearField("parts"), InvalidRequest, "messages[0].parts", "empty"),
        (lambda r: r.messages[0].parts.add(), InvalidRequest, "messages[0].parts[1]", "empty"),
        (lambda r: setattr(r.messages[0].parts[0], "text", ""), InvalidRequest, "messages[0].parts", "empty"),
        (
            lambda r: setattr(r.messages[0].parts[0], "text", "<|image_pad|>"),
            InvalidRequest,
            "messages[0].parts",
            "special token",
        ),
        (lambda r: setattr(r, "model", "gpt"), NotFound, "model", "tiny"),
        (lambda r: setattr(r, "request_id", "a b"), InvalidRequest, "request_id", "letters"),
        (
            lambda r: r.messages[0].parts.add(image=inference_pb2.Image(data=b"not a picture")),
            InvalidRequest,
            "messages[0].parts[1].image.data",
            "JPEG",
        ),
        (
            lambda r: r.messages[0].parts.add(image=inference_pb2.Image(data=png(9_000, 8_000))),
            RequestTooLarge,
            "messages[0].parts[1].image.data",
            "limits.max_image_pixels",
        ),
        (
            lambda r: r.messages[0].parts.add(video=inference_pb2.Video()),
            InvalidRequest,
            "messages[0].parts[1].video.data",
            "data",
        ),
        (
            lambda r: r.messages[0].parts.extend([image_part(png())] * 65),
            RequestTooLarge,
            "messages",
            "limits.max_media_items",
        ),
        (
            lambda r: setattr(r.messages[0].parts[0], "text", "many words " * 40_000),
            RequestTooLarge,
            "messages",
            "context length",
        ),
        (
            lambda r: setattr(r.messages[0].parts[0], "text", "x" * (4 * 2**20 + 1)),
            RequestTooLarge,
            "messages",
            "limits.max_text_bytes",
        ),
        (lambda r: setattr(r.sampling, "temperature", float("nan")), InvalidRequest, "sampling.temperature", "nan"),
        (lambda r: setattr(r.sampling, "max_tokens", 10**6), RequestTooLarge, "sampling.max_tokens", "max_new_tokens"),
        (lambda r: r.sampling.stop.append("x" * 2_000), RequestTooLarge, "sampling.stop[0]", "1024"),
        (lambda r: r.sampling.stop.append(""), InvalidRequest, "sampling.stop", "empty"),
        (lambda r: r.messages.extend([r.messages[0]] * 1_024), RequestTooLarge, "messages", "limits.max_messages"),
    ],
)
def test_bad_requests_are_told_what_and_where(
    preparation: Preparation, change: Change, kind: type[TriptychError], field: str, words: str
) -> None:
    request = user_request(text_part("hello"))
    change(request)
    with pytest.raises(TriptychError) as caught:
        preparation.prepare_now(request)
    error = caught.value
    assert (type(error), error.field) == (kind, field)
    assert words in error.message and field.split("[")[0].split(".")[0] in error.message


async def test_threads_share_the_tokenizer(preparation: Preparation) -> None:
    requests = [user_request(text_part(f"hello {number} " * 50), image_part(png())) for number in range(40)]
    alone = [preparation.prepare_now(request).token_ids for request in requests]
    together = await asyncio.gather(*(preparation.prepare(request) for request in requests))
    assert [prepared.token_ids for prepared in together] == alone
