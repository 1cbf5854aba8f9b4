"""Text from token ids as they come, for byte-level BPE vocabularies."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol


class Vocabulary(Protocol):
    """The part of a tokenizer that is needed here."""

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...


class TokenBytes:
    """The bytes that each token stands for. One per tokenizer, shared by all of its detokenizers."""

    def __init__(self, vocabulary: Vocabulary, special_ids: Iterable[int]) -> None:
        self._vocabulary = vocabulary
        self._byte_of_character = byte_level_alphabet()
        self._special_ids = frozenset(special_ids)
        self._known: dict[int, bytes] = {}  # filled as tokens are met, so bounded by the vocabulary

    def __getitem__(self, token_id: int) -> bytes:
        """Empty for special tokens, and for ids that the tokenizer does not have (models pad their vocabulary)."""
        if token_id not in self._known:
            self._known[token_id] = self._look_up(token_id)
        return self._known[token_id]

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._special_ids:
            return b""
        token = self._vocabulary.convert_ids_to_tokens(token_id) or ""
        try:
            return bytes(self._byte_of_character[character] for character in token)
        except KeyError:  # an added token: its text stands for itself
            return token.encode()


class IncrementalDetokenizer:
    """Turns the tokens of one sequence into text. Each text is final: half a character waits for its other bytes.

    The texts of all `feed` calls and `flush`, joined, are what decoding all tokens at once gives. A token costs the
    same wherever in the sequence it stands.
    """

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; special tokens have none."""
        return self._decoder.decode(b"".join(self._token_bytes[token_id] for token_id in token_ids))

    def flush(self) -> str:
        """At the end of the sequence: replacement characters for bytes that stayed incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)


def byte_level_alphabet() -> dict[str, int]:
    """The byte for each character of a byte-level BPE vocabulary.

    Printable bytes stand for themselves; the others, in order, are written as the characters from U+0100 on (the
    alphabet of GPT-2, which Qwen's vocabularies use).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
