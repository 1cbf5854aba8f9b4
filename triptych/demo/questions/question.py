"""One question and its answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one kind, and the answer that is expected word for word."""

    kind: str
    text: str
    answer: str
