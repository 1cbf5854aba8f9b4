"""Questions about two pictures."""

from collections.abc import Sequence
from random import Random

from triptych.demo.pictures import Scene
from triptych.demo.questions.nouns import countable
from triptych.demo.questions.question import Question
from triptych.demo.questions.words import count_of, description, sentence, there_are

ORDINALS = ("first", "second")


def which_has_more(rng: Random, scenes: Sequence[Scene]) -> Question | None:
    noun, _ = countable(rng, rng.choice(scenes), most_often="shape")
    numbers = [count_of(scene, noun) for scene in scenes]
    text = rng.choice(
        (
            f"Which picture has more {noun}s?",
            f"Which of the two pictures has more {noun}s?",
            f"Which of the pictures shows more {noun}s?",
            f"Which image has more {noun}s?",
            f"In which picture are there more {noun}s?",
            f"Where are more {noun}s, in the first or in the second picture?",
        )
    )
    if numbers[0] == numbers[1]:
        return Question("which_has_more", text, f"Both pictures have the same number of {noun}s.")
    winner = ORDINALS[0] if numbers[0] > numbers[1] else ORDINALS[1]
    return Question("which_has_more", text, f"The {winner} picture has more {noun}s.")


def count_in_one(rng: Random, scenes: Sequence[Scene]) -> Question | None:
    index = rng.randrange(2)
    noun, number = countable(rng, scenes[index])
    ordinal = ORDINALS[index]
    text = rng.choice(
        (
            f"How many {noun}s are in the {ordinal} picture?",
            f"How many {noun}s are there in the {ordinal} picture?",
            f"How many {noun}s do you see in the {ordinal} picture?",
            f"How many {noun}s are in the {ordinal} image?",
            f"How many {noun}s does the {ordinal} picture have?",
        )
    )
    return Question("count_one_of_two", text, there_are(number, noun, f" in the {ordinal} picture"))


def describe_one(rng: Random, scenes: Sequence[Scene]) -> Question | None:
    index = rng.randrange(2)
    ordinal = ORDINALS[index]
    text = rng.choice(
        (
            f"What is in the {ordinal} picture?",
            f"What do you see in the {ordinal} picture?",
            f"What does the {ordinal} picture show?",
            f"Describe the {ordinal} picture.",
            f"What is in the {ordinal} image?",
        )
    )
    return Question("describe_one_of_two", text, sentence(description(scenes[index].shapes)))
