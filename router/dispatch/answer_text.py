"""From the tokens of an answer to the text that a client gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.dispatch.stop_strings import StopScanner
from triptych.models.qwen2_5_vl.detokenizer import IncrementalDetokenizer


@dataclass(frozen=True)
class AnswerPiece:
    """New text and the tokens that count; with `is_stopped` a stop string was found and later tokens were dropped."""

    text: str
    token_ids: tuple[int, ...]
    is_stopped: bool


class AnswerText:
    """Detokenizes token by token, so that a stop string ends the answer at the token that completes it."""

    def __init__(self, detokenizer: IncrementalDetokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._has_stops = bool(stops)
        self._scanner = StopScanner(stops)

    def push(self, token_ids: Sequence[int], *, is_last: bool = False) -> AnswerPiece:
        """What these tokens add. With `is_last` nothing is held back any more."""
        if not self._has_stops:
            text = self._detokenizer.feed(token_ids) + (self._detokenizer.flush() if is_last else "")
            return AnswerPiece(text, tuple(token_ids), is_stopped=False)
        texts = []
        for number, token_id in enumerate(token_ids, start=1):
            scanned = self._scanner.push(self._detokenizer.feed([token_id]))
            texts.append(scanned.text)
            if scanned.is_stopped:
                return AnswerPiece("".join(texts), tuple(token_ids[:number]), is_stopped=True)
        if is_last:
            scanned = self._scanner.push(self._detokenizer.flush())
            texts.append(scanned.text)
            if not scanned.is_stopped:
                texts.append(self._scanner.flush())
        return AnswerPiece("".join(texts), tuple(token_ids), is_stopped=is_last and scanned.is_stopped)
