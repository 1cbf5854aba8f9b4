"""Requests from a seed: long prompts, then many pictures, then long answers, and a rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

from triptych.client import image, user
from triptych.demo.pictures import draw, random_scene
from triptych.v1 import inference_pb2

_WORDS = ("red", "blue", "green", "one", "two", "three", "circle", "square", "triangle", "left", "right", "above")
_PICTURE_SIZE = (336, 224)
# Of 14 by 14 pixels.
PICTURE_PATCHES = 24 * 16


@dataclass(frozen=True)
class Phase:
    """What requests of one phase look like, and how many come in a second (Poisson).

    requests_per_s is reached after up_s and left down_s before the phase's end, both in a straight line from nothing.
    """

    name: str
    seconds: float
    requests_per_s: float
    num_words: int = 8
    num_pictures: int = 0
    max_tokens: int = 8
    up_s: float = 0.0
    down_s: float = 0.0

    def part_at(self, second: float) -> float:
        """Of requests_per_s, so long after the phase began."""
        up = second / self.up_s if self.up_s else 1.0
        down = (self.seconds - second) / self.down_s if self.down_s else 1.0
        return max(0.0, min(1.0, up, down))


@dataclass(frozen=True)
class ShiftRequest:
    at_s: float
    phase: str
    message: inference_pb2.ChatMessage
    max_tokens: int


TEXT, PICTURES, LONG_ANSWERS, REST = "text", "pictures", "long answers", "rest"


def phases(requests_per_s: Mapping[str, float], scale: float = 1.0) -> list[Phase]:
    """requests_per_s: of each phase at its height. scale: of the phases' lengths."""
    hills = [
        Phase(TEXT, 48.0 * scale, requests_per_s[TEXT], num_words=480, max_tokens=1),
        Phase(PICTURES, 48.0 * scale, requests_per_s[PICTURES], num_pictures=4, max_tokens=1),
        Phase(LONG_ANSWERS, 48.0 * scale, requests_per_s[LONG_ANSWERS], max_tokens=120),
    ]
    return [
        *(replace(hill, up_s=34.0 * scale, down_s=5.0 * scale) for hill in hills),
        Phase(REST, 20.0 * scale, requests_per_s[REST], max_tokens=1),
    ]


def some_messages(phase: Phase, num_messages: int, seed: int) -> list[inference_pb2.ChatMessage]:
    """Of requests like those of the phase, and none of them."""
    random = Random(f"others {seed}")
    return [_message(phase, random) for _ in range(num_messages)]


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
        # Thinned: of those at the height of the phase as many as are to come now.
        if random.random() < phase.part_at(at_s - begin_s):
            yield at_s
        at_s += random.expovariate(phase.requests_per_s)


def _message(phase: Phase, random: Random) -> inference_pb2.ChatMessage:
    pictures = [image(draw(random_scene(random, *_PICTURE_SIZE, 2))) for _ in range(phase.num_pictures)]
    return user(*pictures, " ".join(random.choices(_WORDS, k=phase.num_words)))
