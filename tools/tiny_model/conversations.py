"""Random conversations about freshly drawn media: which pictures are shown, what is asked, what is answered."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from PIL import Image

from tools.tiny_model.shape import CELL, MAX_FRAMES, MAX_PIXELS, MIN_PIXELS, VIDEO_MAX_PIXELS
from tools.tiny_model.tokenizer import DEFAULT_SYSTEM
from triptych.demo import questions
from triptych.demo.pictures import MAX_SHAPES, Movie, Scene, Style, frames, random_movie, random_scene
from triptych.demo.questions import Question

# How often each sort of conversation is drawn, and each kind of question within it: the hard kinds more often.
CONVERSATION_WEIGHTS = {"picture": 0.50, "pair": 0.24, "video": 0.15, "text": 0.11}
QUESTION_WEIGHTS = {
    "describe": 3.0,
    "shape": 1.0,
    "count": 2.2,
    "colour": 1.0,
    "where": 10.0,
    "yes_no": 1.8,
    "which_has_more": 2.2,
    "count_one_of_two": 1.6,
    "describe_one_of_two": 2.0,
    "video_direction": 1.6,
    "video_what": 1.6,
    "video_colour": 0.7,
    "count_text": 1.6,
    "sum": 1.6,
    "greeting": 0.8,
}
Subject = TypeVar("Subject")
_SYSTEM_PROMPTS = ("You are a friendly assistant.", "Answer briefly.", "You look at pictures and answer questions.")
_LEAD_INS = ("Look at this picture. ", "Here is a picture: ", "Look at this: ", "Please look at this image. ")
_RESAMPLINGS = (Image.Resampling.BICUBIC, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)


@dataclass(frozen=True, slots=True)
class Medium:
    """One picture (one frame) or video (an even number of frames), how to draw it, and the strength of its noise."""

    frames: tuple[Scene, ...]
    style: Style
    noise: float
    is_video: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer; `parts` is the user's message: text, or the index of a medium."""

    parts: tuple[str | int, ...]
    question: Question


@dataclass(slots=True)
class Conversation:
    turns: list[Turn] = field(default_factory=list)
    media: list[Medium] = field(default_factory=list)
    system: str = DEFAULT_SYSTEM


def random_conversation(rng: Random) -> Conversation:
    """A conversation of 1 to 5 turns about one picture, two pictures, a video, or nothing to see."""
    sort = _weighted(rng, CONVERSATION_WEIGHTS)
    conversation = _BUILDERS[sort](rng)
    if rng.random() < 0.08:
        conversation.system = rng.choice(_SYSTEM_PROMPTS)
    return conversation


def single_question(rng: Random, kind: str) -> Conversation:
    """A conversation of one turn that asks a question of this kind in a clean wording: what the evaluation uses."""
    while True:
        conversation = Conversation()
        if kind in questions.PICTURE_QUESTIONS:
            question = questions.PICTURE_QUESTIONS[kind](rng, _add_picture(rng, conversation))
            parts: tuple[str | int, ...] = (0,)
        elif kind in questions.PAIR_QUESTIONS:
            scenes = [_add_picture(rng, conversation) for _ in range(2)]
            question = questions.PAIR_QUESTIONS[kind](rng, scenes)
            parts = (0, 1)
        elif kind in questions.VIDEO_QUESTIONS:
            question = questions.VIDEO_QUESTIONS[kind](rng, _add_video(rng, conversation))
            parts = (0,)
        else:
            question, parts = questions.TEXT_QUESTIONS[kind](rng), ()
        if question is not None:
            conversation.turns.append(Turn((*parts, question.text), question))
            return conversation


def _about_picture(rng: Random) -> Conversation:
    conversation = Conversation()
    scene = _add_picture(rng, conversation)
    new_media: tuple[int, ...] = (0,)
    for _ in range(_num_turns(rng)):
        if not new_media and rng.random() < 0.06:
            new_media = (len(conversation.media),)
            scene = _add_picture(rng, conversation)
        if not new_media and rng.random() < 0.05:
            _add_turn(rng, conversation, (), _ask_text(rng))
            continue
        question = _ask(rng, questions.PICTURE_QUESTIONS, scene)
        _add_turn(rng, conversation, new_media, question)
        new_media = ()
    return conversation


def _about_pair(rng: Random) -> Conversation:
    conversation = Conversation()
    scenes: Sequence[Scene] = [_add_picture(rng, conversation) for _ in range(2)]
    new_media: tuple[int, ...] = (0, 1)
    if rng.random() < 0.12:
        _add_turn(rng, conversation, (0,), _ask(rng, questions.PICTURE_QUESTIONS, scenes[0]))
        new_media = (1,)
    for _ in range(_num_turns(rng)):
        _add_turn(rng, conversation, new_media, _ask(rng, questions.PAIR_QUESTIONS, scenes))
        new_media = ()
    return conversation


def _about_video(rng: Random) -> Conversation:
    conversation = Conversation()
    movie = _add_video(rng, conversation)
    new_media: tuple[int, ...] = (0,)
    for _ in range(min(3, _num_turns(rng))):
        _add_turn(rng, conversation, new_media, _ask(rng, questions.VIDEO_QUESTIONS, movie))
        new_media = ()
    return conversation


def _about_nothing(rng: Random) -> Conversation:
    conversation = Conversation()
    for _ in range(_num_turns(rng)):
        _add_turn(rng, conversation, (), _ask_text(rng))
    return conversation


_BUILDERS: dict[str, Callable[[Random], Conversation]] = {
    "picture": _about_picture,
    "pair": _about_pair,
    "video": _about_video,
    "text": _about_nothing,
}


def _ask(rng: Random, kinds: Mapping[str, Callable[[Random, Subject], Question | None]], subject: Subject) -> Question:
    weights = {kind: QUESTION_WEIGHTS[kind] for kind in kinds}
    while True:
        question = kinds[_weighted(rng, weights)](rng, subject)
        if question is not None:
            return question


def _ask_text(rng: Random) -> Question:
    return questions.TEXT_QUESTIONS[_weighted(rng, {k: QUESTION_WEIGHTS[k] for k in questions.TEXT_QUESTIONS})](rng)


def _add_turn(rng: Random, conversation: Conversation, media: tuple[int, ...], question: Question) -> None:
    """The user's message with its new media before the text, after it, or between words."""
    text, dice = _careless(rng, question.text), rng.random()
    if not media:
        parts: tuple[str | int, ...] = (text,)
    elif len(media) == 2 and dice < 0.15:
        parts = ("The first picture: ", media[0], " The second picture: ", media[1], f" {text}")
    elif len(media) == 2 and dice < 0.25:
        parts = ("Picture 1: ", media[0], "Picture 2: ", media[1], text)
    elif len(media) == 1 and dice < 0.12:
        parts = (rng.choice(_LEAD_INS), media[0], text)
    elif dice > 0.85:
        parts = (text, *media)
    else:
        parts = (*media, text)
    conversation.turns.append(Turn(parts, question))


def _careless(rng: Random, text: str) -> str:
    if rng.random() < 0.06:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.06 and text[-1] in "?.!":
        text = text[:-1]
    return text


def _num_turns(rng: Random) -> int:
    return rng.choices((1, 2, 3, 4, 5), (0.42, 0.26, 0.16, 0.10, 0.06))[0]


def _weighted(rng: Random, weights: dict[str, float]) -> str:
    return rng.choices(tuple(weights), tuple(weights.values()))[0]


# --- media ---


def _sizes(max_pixels: int) -> tuple[list[tuple[int, int]], list[float]]:
    """Every size that smart_resize can give for sides up to 2.5 : 1, with weights: small ones are drawn more often."""
    sides = range(2, 14)
    sizes = [
        (height * CELL, width * CELL)
        for height in sides
        for width in sides
        if MIN_PIXELS <= height * width * CELL * CELL <= max_pixels and max(height, width) <= 2.5 * min(height, width)
    ]
    return sizes, [math.pow(height * width, -0.6) for height, width in sizes]


_PICTURE_SIZES = _sizes(MAX_PIXELS)
_VIDEO_SIZES = _sizes(VIDEO_MAX_PIXELS)


def _add_picture(rng: Random, conversation: Conversation) -> Scene:
    height, width = rng.choices(*_PICTURE_SIZES)[0]
    cells = height * width // (CELL * CELL)
    most = MAX_SHAPES if cells >= 9 else (3 if cells >= 6 else 2)
    scene = random_scene(rng, width, height, min(most, rng.choices(range(1, 6), (0.22, 0.22, 0.22, 0.18, 0.16))[0]))
    conversation.media.append(Medium((scene,), _random_style(rng), _random_noise(rng), is_video=False))
    return scene


def _add_video(rng: Random, conversation: Conversation) -> Movie:
    height, width = rng.choices(*_VIDEO_SIZES)[0]
    num_frames = rng.choice((10, 12)) if rng.random() < 0.04 else rng.choice((4, 6, MAX_FRAMES))
    movie = random_movie(rng, width, height, num_frames)
    conversation.media.append(Medium(tuple(frames(movie)), _random_style(rng), _random_noise(rng), is_video=True))
    return movie


def _random_style(rng: Random) -> Style:
    dice = rng.random()
    if dice < 0.45:
        scale, resample = rng.choice((2.0, 2.0, 3.0)), Image.Resampling.BOX
    elif dice < 0.72:
        scale, resample = 1.0, Image.Resampling.BOX
    elif dice < 0.97:
        scale, resample = rng.uniform(1.05, 2.2), rng.choice(_RESAMPLINGS)
    else:
        scale, resample = rng.uniform(0.6, 0.95), rng.choice(_RESAMPLINGS)
    quality = rng.randint(40, 95) if rng.random() < 0.07 else None
    return Style(scale, resample, outline=rng.random() < 0.07, jpeg_quality=quality)


def _random_noise(rng: Random) -> float:
    """Standard deviation of the noise in grey levels; none for half of the media."""
    return 0.0 if rng.random() < 0.5 else rng.uniform(0.0, 10.0)
