"""Mixed requests from a seed, and what an honest outcome of each is."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from triptych.client import image, user, video
from triptych.demo.pictures import draw, draw_video, random_movie, random_scene
from triptych.demo.questions import PICTURE_QUESTIONS, TEXT_QUESTIONS, VIDEO_QUESTIONS
from triptych.v1 import inference_pb2

_SIZES = ((112, 112), (140, 112), (168, 140))
_MAX_TOKENS = 48
_NUM_FRAMES = 8
# Parts of the whole, in percent; what is left over are plain requests.
_PERCENT = {"cancelled": 8, "bad": 6, "late": 4}


class Fate(StrEnum):
    """What happens to a request beside the killing of actors."""

    PLAIN = "plain"
    # The client goes away after a while.
    CANCELLED = "cancelled"
    # It can't be answered and must be refused with InvalidRequest.
    BAD = "bad"
    # Its deadline is too short to be met.
    LATE = "late"


@dataclass(frozen=True)
class ChaosRequest:
    """`cancel_after_s` and `timeout_s` hold for their fates; sampling is greedy or seeded, so that answers repeat."""

    number: int
    kind: str
    fate: Fate
    messages: list[inference_pb2.ChatMessage]
    sampling: dict[str, object] = field(default_factory=dict)
    cancel_after_s: float = 0.0
    timeout_s: float = 120.0


def make_requests(num_requests: int, seed: int) -> list[ChaosRequest]:
    """The same seed makes the same requests; no two pictures are alike."""
    return [_make(number, Random(f"chaos {seed} {number}")) for number in range(num_requests)]


def _make(number: int, random: Random) -> ChaosRequest:
    kind = random.choices(("text", "picture", "pictures", "video"), (25, 45, 20, 10))[0]
    fate = random.choices(
        (Fate.CANCELLED, Fate.BAD, Fate.LATE, Fate.PLAIN), (*_PERCENT.values(), 100 - sum(_PERCENT.values()))
    )[0]
    messages = [_bad_message(random)] if fate is Fate.BAD else [_message(kind, random)]
    sampling: dict[str, object] = {"max_tokens": random.randint(4, _MAX_TOKENS), "ignore_eos": True}
    if random.random() < 0.5:
        sampling |= {"temperature": 1.0, "seed": random.getrandbits(32)}
    return ChaosRequest(
        number=number,
        kind=kind,
        fate=fate,
        messages=messages,
        sampling=sampling,
        cancel_after_s=random.uniform(0.0, 1.0) if fate is Fate.CANCELLED else 0.0,
        timeout_s=random.uniform(0.001, 0.05) if fate is Fate.LATE else 120.0,
    )


def _message(kind: str, random: Random) -> inference_pb2.ChatMessage:
    if kind == "text":
        question = random.choice(list(TEXT_QUESTIONS.values()))(random)
        return user(question.text)
    if kind == "video":
        movie = random_movie(random, 112, 112, _NUM_FRAMES)
        question = random.choice(list(VIDEO_QUESTIONS.values()))(random, movie)
        return user(video(draw_video(movie)), question.text if question else "What moves?")
    count = 1 if kind == "picture" else random.randint(2, 8)
    scenes = [random_scene(random, *random.choice(_SIZES), random.randint(1, 4)) for _ in range(count)]
    question = random.choice(list(PICTURE_QUESTIONS.values()))(random, scenes[0])
    return user(*(image(draw(scene)) for scene in scenes), question.text if question else "What is in the picture?")


def _bad_message(random: Random) -> inference_pb2.ChatMessage:
    """A picture that is none, one that is cut off, or a role that is none."""
    buffer = io.BytesIO()
    draw(random_scene(random, 112, 112, 2)).save(buffer, "JPEG")
    broken = random.choice((b"no picture at all", buffer.getvalue()[:40], b""))
    if random.random() < 0.2:
        return inference_pb2.ChatMessage(role="nobody", parts=[inference_pb2.ContentPart(text="hello")])
    return user(image(broken), "What is in the picture?")
