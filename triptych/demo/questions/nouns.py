"""Nouns drawn by chance: what is asked after, whether it is there or not."""

from collections import Counter
from collections.abc import Sequence
from random import Random

from triptych.demo.pictures import COLOURS, SHAPE_KINDS, Scene, Shape
from triptych.demo.questions.words import count_of


def unique(rng: Random, values: Sequence[str]) -> str | None:
    once = [value for value, times in Counter(values).items() if times == 1]
    return rng.choice(once) if once else None


def countable(rng: Random, scene: Scene, most_often: str | None = None) -> tuple[str, int]:
    shape, dice = rng.choice(scene.shapes), rng.random()
    if most_often is not None and rng.random() < 0.45:
        noun = most_often
    elif dice < 0.25:
        noun = "shape"
    elif dice < 0.50:
        noun = shape.kind if rng.random() < 0.8 else rng.choice(SHAPE_KINDS)
    elif dice < 0.75:
        noun = f"{shape.colour if rng.random() < 0.8 else rng.choice(COLOURS)} shape"
    else:
        noun = shape.name if rng.random() < 0.75 else absent_name(rng, scene.shapes)
    return noun, count_of(scene, noun)


def absent_name(rng: Random, shapes: Sequence[Shape]) -> str:
    """A coloured shape that is not there; half the time one that shares colour or kind with what is."""
    present = {shape.name for shape in shapes}
    while True:
        tone, kind = rng.choice(COLOURS), rng.choice(SHAPE_KINDS)
        dice = rng.random()
        if dice < 0.4:
            tone = rng.choice(shapes).colour
        elif dice < 0.8:
            kind = rng.choice(shapes).kind
        if f"{tone} {kind}" not in present:
            return f"{tone} {kind}"
