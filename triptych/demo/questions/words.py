"""How shapes, numbers and places are said."""

from collections import Counter
from collections.abc import Sequence

from triptych.demo.pictures import COLOURS, SHAPE_KINDS, Scene, Shape

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


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
