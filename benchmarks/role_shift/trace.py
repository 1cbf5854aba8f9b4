"""The shift test of the EPD paper (arXiv 2501.05460): 10 requests with short answers, then 90 with long ones."""

from __future__ import annotations

from random import Random

from benchmarks.shift.trace import ShiftRequest
from triptych.client import image, user
from triptych.demo.pictures import draw, random_scene
from triptych.v1 import inference_pb2

SHORT, LONG = "short answers", "long answers"
NUM_SHORT, NUM_LONG = 10, 90
MAX_TOKENS = {SHORT: 50, LONG: 500}
_PICTURE_SIZE = (448, 448)
_QUESTION = "Say what is to be seen in this picture, where each thing is, and what color it has, in order."


def make_trace(requests_per_s: float, seed: int) -> list[ShiftRequest]:
    """Poisson arrivals, one picture a request, no two alike. The same seed makes the same requests."""
    random, at_s, requests = Random(f"role shift {seed}"), 0.0, []
    for phase in [SHORT] * NUM_SHORT + [LONG] * NUM_LONG:
        at_s += random.expovariate(requests_per_s)
        requests.append(ShiftRequest(at_s, phase, make_message(random), MAX_TOKENS[phase]))
    return requests


def make_message(random: Random) -> inference_pb2.ChatMessage:
    return user(image(draw(random_scene(random, *_PICTURE_SIZE, 2))), _QUESTION)
