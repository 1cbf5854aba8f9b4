"""The served answers are right: fresh questions of every kind, drawn from seeds that training never used."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from random import Random

from harness import ONE_OF_EACH, InProcessSystem

from triptych.client import image, user, video
from triptych.demo.pictures import draw, draw_video, random_movie, random_scene
from triptych.demo.questions import (
    KINDS,
    PAIR_QUESTIONS,
    PICTURE_QUESTIONS,
    TEXT_QUESTIONS,
    VIDEO_QUESTIONS,
    Question,
)
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.v1 import inference_pb2

QUESTIONS_PER_KIND = 4
WANTED_RATE = 0.9
PICTURE_SIZES = ((112, 112), (140, 84), (84, 168), (168, 112), (224, 196))
VIDEO_SIZES = ((112, 112), (84, 112), (140, 84))
NUM_FRAMES = 8


@dataclass(frozen=True)
class Asked:
    message: inference_pb2.ChatMessage
    question: Question


def ask_of_kind(rng: Random, kind: str) -> Asked:
    """A question with its pictures or video before it. Scenes without a clear answer are drawn again."""
    while True:
        parts: list[inference_pb2.ContentPart] = []
        if kind in PICTURE_QUESTIONS or kind in PAIR_QUESTIONS:
            num_pictures = 1 if kind in PICTURE_QUESTIONS else 2
            scenes = [random_scene(rng, *rng.choice(PICTURE_SIZES), rng.randint(1, 4)) for _ in range(num_pictures)]
            parts = [image(draw(scene)) for scene in scenes]
            asked = PICTURE_QUESTIONS[kind](rng, scenes[0]) if num_pictures == 1 else PAIR_QUESTIONS[kind](rng, scenes)
        elif kind in VIDEO_QUESTIONS:
            movie = random_movie(rng, *rng.choice(VIDEO_SIZES), NUM_FRAMES)
            parts = [video(draw_video(movie))]
            asked = VIDEO_QUESTIONS[kind](rng, movie)
        else:
            asked = TEXT_QUESTIONS[kind](rng)
        if asked is not None:
            return Asked(user(*parts, asked.text), asked)


async def test_every_kind_of_question_is_answered() -> None:
    asked = [ask_of_kind(Random(f"served-{kind}-{n}"), kind) for kind in KINDS for n in range(QUESTIONS_PER_KIND)]
    assert len(asked) >= 60
    async with InProcessSystem(BUILT_IN_FOLDER, ONE_OF_EACH) as system:
        answers = await asyncio.gather(*(system.client.chat([item.message], max_tokens=160) for item in asked))
    right: dict[str, int] = defaultdict(int)
    wrong = []
    for item, answer in zip(asked, answers, strict=True):
        is_right = answer.text == item.question.answer and answer.finish_reason == "stop"
        right[item.question.kind] += is_right
        if not is_right:
            wrong.append(f"{item.question.text} {answer.text!r}, expected {item.question.answer!r}")
    assert sum(right.values()) >= WANTED_RATE * len(asked), wrong
    assert all(right[kind] >= QUESTIONS_PER_KIND / 2 for kind in KINDS), wrong
