"""Questions about one picture. None where the scene has no clear answer."""

from collections import Counter
from random import Random

from triptych.demo.pictures import SHAPE_KINDS, Scene
from triptych.demo.questions.nouns import absent_name, countable, unique
from triptych.demo.questions.question import Question
from triptych.demo.questions.words import description, place_of, sentence, there_are, with_article


def describe(rng: Random, scene: Scene) -> Question | None:
    text = rng.choice(
        (
            "What is in the picture?",
            "What is in this picture?",
            "What is in the image?",
            "What do you see?",
            "What can you see?",
            "What do you see in this picture?",
            "What do you see in the image?",
            "What does the picture show?",
            "What is this?",
            "Describe the picture.",
            "Describe this picture.",
            "Describe this image.",
            "Describe what you see.",
            "Tell me what you see.",
        )
    )
    return Question("describe", text, sentence(description(scene.shapes)))


def shape_of(rng: Random, scene: Scene) -> Question | None:
    colour = unique(rng, [shape.colour for shape in scene.shapes])
    if colour is None:
        return None
    kind = next(shape.kind for shape in scene.shapes if shape.colour == colour)
    text = rng.choice(
        (
            f"Which shape is {colour}?",
            f"What shape is {colour}?",
            f"What is the {colour} shape?",
            f"Which shape is the {colour} one?",
            f"What is {colour}?",
        )
    )
    return Question("shape", text, f"The {colour} shape is a {kind}.")


def count(rng: Random, scene: Scene) -> Question | None:
    noun, number = countable(rng, scene)
    text = rng.choice(
        (
            f"How many {noun}s are there?",
            f"How many {noun}s are in the picture?",
            f"How many {noun}s are in this picture?",
            f"How many {noun}s are in the image?",
            f"How many {noun}s do you see?",
            f"How many {noun}s can you see?",
            f"Count the {noun}s.",
            f"How many {noun}s?",
        )
    )
    return Question("count", text, there_are(number, noun))


def colour(rng: Random, scene: Scene) -> Question | None:
    kind = unique(rng, [shape.kind for shape in scene.shapes])
    if kind is None:
        return None
    tone = next(shape.colour for shape in scene.shapes if shape.kind == kind)
    noun = "shape" if len(scene.shapes) == 1 and rng.random() < 0.25 else kind
    word = rng.choice(("colour", "colour", "color"))
    text = rng.choice(
        (
            f"What {word} is the {noun}?",
            f"Which {word} is the {noun}?",
            f"Which {word} does the {noun} have?",
            f"What is the {word} of the {noun}?",
            f"Tell me the {word} of the {noun}.",
        )
    )
    return Question("colour", text, f"The {kind} is {tone}.")


def where(rng: Random, scene: Scene) -> Question | None:
    names = Counter(shape.name for shape in scene.shapes)
    kinds = Counter(shape.kind for shape in scene.shapes)
    clear = [(shape, place) for shape in scene.shapes if names[shape.name] == 1 and (place := place_of(shape))]
    if not clear:
        return None
    shape, place = rng.choice(clear)
    noun = shape.kind if kinds[shape.kind] == 1 and rng.random() < 0.4 else shape.name
    text = rng.choice(
        (
            f"Where is the {noun}?",
            f"Where is the {noun} in the picture?",
            f"Where in the picture is the {noun}?",
            f"Where do you see the {noun}?",
            f"In which part of the picture is the {noun}?",
        )
    )
    return Question("where", text, f"The {noun} is {place}.")


def yes_or_no(rng: Random, scene: Scene) -> Question | None:
    present = [shape.name for shape in scene.shapes]
    if rng.random() < 0.5:
        name = rng.choice(present)
    else:
        name = absent_name(rng, scene.shapes)
    if rng.random() < 0.2:
        kinds = {shape.kind for shape in scene.shapes}
        name = rng.choice(SHAPE_KINDS)
        is_there = name in kinds
    else:
        is_there = name in present
    thing = with_article(name)
    text = rng.choice(
        (
            f"Is there {thing}?",
            f"Is there {thing} in the picture?",
            f"Is there {thing} in this picture?",
            f"Do you see {thing}?",
            f"Can you see {thing}?",
            f"Does the picture show {thing}?",
        )
    )
    return Question("yes_no", text, f"Yes, there is {thing}." if is_there else f"No, there is no {name}.")
