from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.answer_text import AnswerText
from router.dispatch.stop_strings import StopScanner
from triptych.models.qwen2_5_vl.detokenizer import IncrementalDetokenizer, TokenBytes, byte_level_alphabet


class ByteVocabulary:
    """Token i is byte i: multi-byte characters always come in several tokens."""

    def __init__(self) -> None:
        self._characters = {byte: character for character, byte in byte_level_alphabet().items()}

    def convert_ids_to_tokens(self, ids: int) -> str:
        return self._characters[ids]


def answer(*stops: str) -> AnswerText:
    return AnswerText(IncrementalDetokenizer(TokenBytes(ByteVocabulary(), ())), stops)


def expected_text(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition, without streaming: cut where the first stop string to be complete begins."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    pieces=st.lists(st.text("abé世", max_size=4), max_size=12),
    stops=st.lists(st.text("abé世", min_size=1, max_size=4), max_size=3),
)
def test_streamed_scan_equals_the_definition(pieces: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops)
    text, is_stopped = "", False
    for piece in pieces:
        scanned = scanner.push(piece)
        text += scanned.text
        if scanned.is_stopped:
            is_stopped = True
            break
    if not is_stopped:
        text += scanner.flush()
    assert (text, is_stopped) == expected_text("".join(pieces), stops)


@given(
    text=st.text("ab é世🙂", max_size=20),
    stops=st.lists(st.text("ab é世🙂", min_size=1, max_size=3), max_size=2),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_tokens_in_any_groups_give_the_same_answer(text: str, stops: list[str], cuts: list[int]) -> None:
    token_ids = list(text.encode())
    bounds = sorted({0, len(token_ids), *(min(cut, len(token_ids)) for cut in cuts)})
    assembled = answer(*stops)
    got, counted, is_stopped = "", 0, False
    for begin, end in pairwise(bounds):
        piece = assembled.push(token_ids[begin:end], is_last=end == len(token_ids))
        got += piece.text
        counted += len(piece.token_ids)
        if piece.is_stopped:
            is_stopped = True
            break
    expected, expected_stop = expected_text(text, stops)
    assert (got, is_stopped) == (expected, expected_stop)
    if not is_stopped:
        assert counted == len(token_ids)


def test_text_is_held_only_while_it_could_begin_a_stop() -> None:
    scanner = StopScanner(["###"])
    assert scanner.push("a##").text == "a"
    assert scanner.push("b").text == "##b"
    assert scanner.push("##").text == ""
    last = scanner.push("# and more")
    assert (last.text, last.is_stopped) == ("", True)


def test_tokens_behind_the_stop_are_dropped() -> None:
    piece = answer("世").push(list("a世bcd".encode()))
    assert piece.text == "a" and piece.is_stopped
    assert list(piece.token_ids) == list("a世".encode())


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    assembled = answer()
    assert assembled.push(list("世".encode()[:2])).text == ""
    assert assembled.push([], is_last=True).text == "�"
