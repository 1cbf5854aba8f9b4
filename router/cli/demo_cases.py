"""What the demo draws and asks: one picture, two pictures, a video, and text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image

from triptych.client import image, user, video
from triptych.demo.pictures import draw, draw_video, random_movie, random_scene
from triptych.demo.questions import (
    PAIR_QUESTIONS,
    PICTURE_QUESTIONS,
    VIDEO_QUESTIONS,
    Question,
    count_up,
    description,
    with_article,
)
from triptych.v1 import inference_pb2

# Sides in pixels: multiples of 28, so that nothing is resized and each merged patch is one embedding.
PICTURE_SIZES = ((140, 112), (112, 112), (168, 140))
VIDEO_SIDE = 112
NUM_FRAMES = 8
QUESTIONS_PER_PICTURE = 3
QUESTIONS_PER_PAIR = 2
QUESTIONS_PER_VIDEO = 2


@dataclass(frozen=True)
class Case:
    """Pictures to show and send, and questions with their true answers. `truth` says in words what was drawn."""

    title: str
    truth: str
    questions: tuple[Question, ...]
    pictures: tuple[Image.Image, ...] = ()
    is_video: bool = False

    @property
    def num_media(self) -> int:
        """Media items of one request."""
        return 1 if self.is_video else len(self.pictures)

    @property
    def pictures_to_show(self) -> tuple[Image.Image, ...]:
        """As many as fit side by side: of a video every second frame."""
        return self.pictures[::2] if self.is_video else self.pictures

    def message(self, question: str) -> inference_pb2.ChatMessage:
        """Media first, then the question."""
        media = [video(self.pictures)] if self.is_video else [image(picture) for picture in self.pictures]
        return user(*media, question)


def draw_cases(rng: Random) -> list[Case]:
    """Fresh ones for each random source."""
    return [_picture(rng), _pair(rng), _video(rng), _text(rng)]


def _picture(rng: Random) -> Case:
    scene = random_scene(rng, *PICTURE_SIZES[2], rng.randint(2, 4))
    questions = _pick(rng, PICTURE_QUESTIONS, scene, QUESTIONS_PER_PICTURE)
    return Case("a picture", description(scene.shapes), questions, (draw(scene),))


def _pair(rng: Random) -> Case:
    scenes = [random_scene(rng, *size, rng.randint(1, 4)) for size in PICTURE_SIZES[:2]]
    truth = "; ".join(description(scene.shapes) for scene in scenes)
    questions = _pick(rng, PAIR_QUESTIONS, scenes, QUESTIONS_PER_PAIR)
    return Case("two pictures", truth, questions, tuple(draw(scene) for scene in scenes))


def _video(rng: Random) -> Case:
    movie = random_movie(rng, VIDEO_SIDE, VIDEO_SIDE, NUM_FRAMES)
    truth = f"{NUM_FRAMES} frames of {with_article(movie.shape.name)} that moves {movie.direction}"
    questions = _pick(rng, VIDEO_QUESTIONS, movie, QUESTIONS_PER_VIDEO)
    return Case("a video", truth, questions, tuple(draw_video(movie)), is_video=True)


def _text(rng: Random) -> Case:
    return Case("text alone", "goes past the encoder", (count_up(rng, longest=8),))


def _pick(
    rng: Random, kinds: dict[str, Callable[[Random, Any], Question | None]], drawn: Any, count: int
) -> tuple[Question, ...]:
    """`count` questions of different kinds, of those that have a clear answer here."""
    askable: Sequence[Question] = [question for ask in kinds.values() if (question := ask(rng, drawn)) is not None]
    return tuple(rng.sample(askable, min(count, len(askable))))
