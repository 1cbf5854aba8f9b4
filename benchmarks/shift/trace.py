"""Requests from a seed: long prompts, then many pictures, then long answers, long prompts again, and a rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from triptych.client import image, user
from triptych.demo.pictures import draw, random_scene
from triptych.v1 import inference_pb2

_WORDS = ("red", "blue", "green", "one", "two", "three", "circle", "square", "triangle", "left", "right", "above")
_PICTURE_SIZE = (336, 224)


@dataclass(frozen=True)
class Phase:
    """What requests of one phase look like, and how many come in a second (Poisson)."""

    name: str
    seconds: float
    requests_per_s: float
    num_words: int = 8
    num_pictures: int = 0
    max_tokens: int = 8


@dataclass(frozen=True)
class ShiftRequest:
    at_s: float
    phase: str
    message: inference_pb2.ChatMessage
    max_tokens: int


def phases(scale: float = 1.0) -> list[Phase]:
    """scale: of the phases' lengths. The rates are such that two cores are busy for about half of the time."""
    return [
        Phase("text", 35.0 * scale, 5.0, num_words=480),
        Phase("pictures", 40.0 * scale, 2.2, num_pictures=8),
        Phase("long answers", 40.0 * scale, 2.4, max_tokens=400),
        Phase("text again", 30.0 * scale, 5.0, num_words=480),
        Phase("rest", 25.0 * scale, 0.5),
    ]


def make_trace(shift: list[Phase], seed: int) -> list[ShiftRequest]:
    """The same seed makes the same requests; no two pictures are alike."""
    random, begin_s, requests = Random(f"shift {seed}"), 0.0, []
    for phase in shift:
        requests += [
            ShiftRequest(at_s, phase.name, _message(phase, random), phase.max_tokens)
            for at_s in _arrivals(begin_s, phase, random)
        ]
        begin_s += phase.seconds
    return requests


def _arrivals(begin_s: float, phase: Phase, random: Random) -> Iterator[float]:
    at_s = begin_s + random.expovariate(phase.requests_per_s)
    while at_s < begin_s + phase.seconds:
        yield at_s
        at_s += random.expovariate(phase.requests_per_s)


def _message(phase: Phase, random: Random) -> inference_pb2.ChatMessage:
    pictures = [image(draw(random_scene(random, *_PICTURE_SIZE, 2))) for _ in range(phase.num_pictures)]
    return user(*pictures, " ".join(random.choices(_WORDS, k=phase.num_words)))
