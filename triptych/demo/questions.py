"""Questions about drawn scenes, in several wordings, each with the one right answer.

Every function takes the random source and what was drawn, and returns a `Question`, or None where the scene has no
clear answer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from triptych.demo.pictures import COLOURS, SHAPE_KINDS, Movie, Scene, Shape

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second")


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one kind, and the answer that is expected word for word."""

    kind: str
    text: str
    answer: str


# --- about one picture ---


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
    colour = _unique(rng, [shape.colour for shape in scene.shapes])
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
    noun, number = _countable(rng, scene)
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
    kind = _unique(rng, [shape.kind for shape in scene.shapes])
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
        name = _absent_name(rng, scene.shapes)
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


# --- about two pictures ---


def which_has_more(rng: Random, scenes: Sequence[Scene]) -> Question | None:
    noun, _ = _countable(rng, rng.choice(scenes), most_often="shape")
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
    noun, number = _countable(rng, scenes[index])
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


# --- about a video ---


def direction(rng: Random, movie: Movie) -> Question | None:
    noun = rng.choice((movie.shape.kind, "shape", "it"))
    noun = noun if noun == "it" else f"the {noun}"
    text = rng.choice(
        (
            f"Which way does {noun} move?",
            f"Which way is {noun} moving?",
            f"In which direction does {noun} move?",
            f"What direction does {noun} move?",
            f"Where does {noun} go?",
            f"Where is {noun} going?",
        )
    )
    return Question("video_direction", text, f"The {movie.shape.kind} moves {movie.direction}.")


def what_moves(rng: Random, movie: Movie) -> Question | None:
    text = rng.choice(
        (
            "What is in the video?",
            "What do you see in the video?",
            "What happens in the video?",
            "What happens in this video?",
            "What does the video show?",
            "What moves in the video?",
            "Describe the video.",
            "Describe this video.",
            "What is moving?",
        )
    )
    return Question("video_what", text, sentence(f"{with_article(movie.shape.name)} moves {movie.direction}"))


def colour_in_video(rng: Random, movie: Movie) -> Question | None:
    noun = rng.choice((f"the {movie.shape.kind}", "the shape", "it"))
    word = rng.choice(("colour", "colour", "color"))
    text = rng.choice(
        (
            f"What {word} is {noun}?",
            f"Which {word} is {noun}?",
            f"Which {word} does {noun} have?",
            f"What {word} does {noun} have?",
        )
    )
    return Question("video_colour", text, f"The {movie.shape.kind} is {movie.shape.colour}.")


# --- text alone ---


def count_up(rng: Random, longest: int = 30) -> Question:
    """Counting from a to b, both in 0..100, mostly short; `longest` bounds the count of numbers."""
    length = rng.randint(2, longest) if rng.random() < 0.3 else rng.randint(2, min(12, longest))
    first = rng.randint(0, 20) if rng.random() < 0.6 else rng.randint(0, 101 - length)
    first = 1 if rng.random() < 0.15 else first
    last = first + length - 1
    text = rng.choice(
        (
            f"Count from {first} to {last}.",
            f"Please count from {first} to {last}.",
            f"Can you count from {first} to {last}?",
            f"Count up from {first} to {last}.",
        )
    )
    return Question("count_text", text, ", ".join(str(number) for number in range(first, last + 1)) + ".")


def add(rng: Random) -> Question:
    """Sums of two numbers in 0..12."""
    left, right = rng.randint(0, 12), rng.randint(0, 12)
    text = rng.choice(
        (
            f"What is {left} plus {right}?",
            f"How much is {left} plus {right}?",
            f"What is {left} + {right}?",
            f"{left} + {right} = ?",
            f"Add {left} and {right}.",
        )
    )
    return Question("sum", text, f"{left} plus {right} is {left + right}.")


def greet(rng: Random) -> Question:
    questions, answer = rng.choice(
        (
            (
                (
                    "Hello!",
                    "Hello.",
                    "Hi!",
                    "Hi.",
                    "Hello there!",
                    "Good morning!",
                    "Good evening!",
                    "Hi there!",
                    "Hey!",
                ),
                "Hello! Show me a picture with coloured shapes and ask me about it.",
            ),
            (
                ("Who are you?", "What are you?", "What is your name?", "Tell me who you are."),
                "I am a very small model that sees coloured shapes.",
            ),
            (
                ("What can you do?", "What can I ask you?", "How can you help me?", "Help!", "Help."),
                "I can name, count and find coloured shapes, and tell which way they move.",
            ),
            (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!"), "You are welcome!"),
            (("Goodbye!", "Bye!", "See you!", "Good night!", "Bye bye!"), "Goodbye! Come back soon."),
            (("How are you?", "How are you today?", "How do you do?"), "I am fine, thank you! I love coloured shapes."),
        )
    )
    return Question("greeting", rng.choice(questions), answer)


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


# --- words ---


def description(shapes: Sequence[Shape]) -> str:
    """Such as `a red circle, two blue squares and a green triangle`: by kind, then by colour, in a fixed order."""
    groups = Counter((SHAPE_KINDS.index(shape.kind), COLOURS.index(shape.colour)) for shape in shapes)
    parts = []
    for (kind, tone), number in sorted(groups.items()):
        name = f"{COLOURS[tone]} {SHAPE_KINDS[kind]}"
        parts.append(with_article(name) if number == 1 else f"{NUMBER_WORDS[number]} {name}s")
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def there_are(number: int, noun: str, place: str = "") -> str:
    verb, ending = ("is", "") if number == 1 else ("are", "s")
    return f"There {verb} {NUMBER_WORDS[number]} {noun}{ending}{place}."


def count_of(scene: Scene, noun: str) -> int:
    """How many shapes of the scene a noun such as `shape`, `circle`, `red shape`, `red circle` names."""
    *tone, kind = noun.split()
    return sum(
        (not tone or shape.colour == tone[0]) and (kind == "shape" or shape.kind == kind) for shape in scene.shapes
    )


def place_of(shape: Shape) -> str | None:
    """The part of the picture that a shape's centre is in; None near a border, where people would differ."""
    column, row = _third(shape.x), _third(shape.y)
    if column is None or row is None:
        return None
    return _PLACES[row][column]


def with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


_PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)


def _third(position: float) -> int | None:
    if position < 0.33:
        return 0
    if position > 0.67:
        return 2
    return 1 if 0.40 < position < 0.60 else None


def _unique(rng: Random, values: Sequence[str]) -> str | None:
    once = [value for value, times in Counter(values).items() if times == 1]
    return rng.choice(once) if once else None


def _countable(rng: Random, scene: Scene, most_often: str | None = None) -> tuple[str, int]:
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
        noun = shape.name if rng.random() < 0.75 else _absent_name(rng, scene.shapes)
    return noun, count_of(scene, noun)


def _absent_name(rng: Random, shapes: Sequence[Shape]) -> str:
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
