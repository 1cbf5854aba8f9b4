"""Questions about drawn scenes, in several wordings, each with the one right answer.

Every function takes the random source and what was drawn, and returns a `Question`, or None where the scene has no
clear answer.
"""

from collections.abc import Callable, Sequence
from random import Random

from triptych.demo.pictures import Movie, Scene
from triptych.demo.questions.about_pair import count_in_one, describe_one, which_has_more
from triptych.demo.questions.about_picture import colour, count, describe, shape_of, where, yes_or_no
from triptych.demo.questions.about_video import colour_in_video, direction, what_moves
from triptych.demo.questions.question import Question
from triptych.demo.questions.text_alone import add, count_up, greet
from triptych.demo.questions.words import (
    NUMBER_WORDS,
    count_of,
    description,
    place_of,
    sentence,
    there_are,
    with_article,
)

PICTURE_QUESTIONS: dict[str, Callable[[Random, Scene], Question | None]] = {
    "describe": describe,
    "shape": shape_of,
    "count": count,
    "colour": colour,
    "where": where,
    "yes_no": yes_or_no,
}
PAIR_QUESTIONS: dict[str, Callable[[Random, Sequence[Scene]], Question | None]] = {
    "which_has_more": which_has_more,
    "count_one_of_two": count_in_one,
    "describe_one_of_two": describe_one,
}
VIDEO_QUESTIONS: dict[str, Callable[[Random, Movie], Question | None]] = {
    "video_direction": direction,
    "video_what": what_moves,
    "video_colour": colour_in_video,
}
TEXT_QUESTIONS: dict[str, Callable[[Random], Question]] = {"count_text": count_up, "sum": add, "greeting": greet}
KINDS = (*PICTURE_QUESTIONS, *PAIR_QUESTIONS, *VIDEO_QUESTIONS, *TEXT_QUESTIONS)

__all__ = [
    "KINDS",
    "NUMBER_WORDS",
    "PAIR_QUESTIONS",
    "PICTURE_QUESTIONS",
    "TEXT_QUESTIONS",
    "VIDEO_QUESTIONS",
    "Question",
    "add",
    "colour",
    "colour_in_video",
    "count",
    "count_in_one",
    "count_of",
    "count_up",
    "describe",
    "describe_one",
    "description",
    "direction",
    "greet",
    "place_of",
    "sentence",
    "shape_of",
    "there_are",
    "what_moves",
    "where",
    "which_has_more",
    "with_article",
    "yes_or_no",
]
