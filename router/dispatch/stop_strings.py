"""Finds stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScannedText:
    """`text` is final and may be sent; with `is_stopped` it is the last: a stop string begins behind it."""

    text: str
    is_stopped: bool


class StopScanner:
    """Holds text back only as long as it could be the beginning of a stop string.

    Characters are matched one by one against all stop strings (Knuth, Morris, Pratt 1977), so that what is found does
    not depend on how the text was cut into pieces. The first complete stop string counts, the longest of several.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._held = ""

    def push(self, text: str) -> ScannedText:
        """Text that may be sent after `text` came. Not to be called again once stopped."""
        num_held = len(self._held)
        self._held += text
        for position, character in enumerate(text, start=num_held + 1):
            for pattern in self._patterns:
                if pattern.advance(character):
                    return ScannedText(self._held[: position - pattern.length], is_stopped=True)
        num_kept = max((pattern.num_matched for pattern in self._patterns), default=0)
        num_final = len(self._held) - num_kept
        final, self._held = self._held[:num_final], self._held[num_final:]
        return ScannedText(final, is_stopped=False)

    def flush(self) -> str:
        """At the end of the answer: what was held back after all."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One stop string and how many of its characters the text ends with."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._borders = _borders(stop)
        self.length = len(stop)
        self.num_matched = 0

    def advance(self, character: str) -> bool:
        """Takes the next character of the text; True when the stop string is complete."""
        while self.num_matched and self._stop[self.num_matched] != character:
            self.num_matched = self._borders[self.num_matched - 1]
        if self._stop[self.num_matched] == character:
            self.num_matched += 1
        return self.num_matched == self.length


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        if stop[index] == stop[length]:
            length += 1
        borders[index] = length
    return borders
