"""What a placement policy looks at, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from router.dispatch.loads import NO_LOAD, Load


@dataclass(frozen=True)
class MediaWork:
    """One picture or video as far as its placement depends on it."""

    content_key: str
    num_patches: int


@dataclass(frozen=True)
class Candidate:
    """An actor that could be chosen, as this router knows it.

    load: what this router has given it and not got back. cached_content: those of the request's content keys whose
    embedding it probably holds. num_cached_tokens: of the request's prompt, from its beginning, whose KV pages it
    probably holds. num_kv_tokens: tokens that its KV cache has room for, 0 where it did not say.
    """

    actor_id: str
    load: Load = NO_LOAD
    cached_content: frozenset[str] = frozenset()
    num_cached_tokens: int = 0
    num_kv_tokens: int = 0

    @property
    def kv_use(self) -> float:
        """Part of the KV cache that is spoken for; the number of tokens where the room is not known."""
        return self.load.num_kv_tokens / (self.num_kv_tokens or 1)


@dataclass(frozen=True)
class Chance:
    """turn: number of the request, from 0. random: for policies that draw; seeded by whoever wants the same again."""

    turn: int
    random: Random


# All candidate sequences are non-empty. The same content key within a call gets the same encoder.
ChooseEncoders = Callable[[Sequence[MediaWork], Sequence[Candidate], Chance], list[Candidate]]
ChoosePrefill = Callable[[int, Sequence[Candidate], Chance], Candidate]
ChooseDecode = Callable[[Sequence[Candidate], Chance], Candidate]


@dataclass(frozen=True)
class PlacementPolicy:
    """encoders: one for each item. prefill: for a prompt of that many tokens. decode: for a request to come."""

    encoders: ChooseEncoders
    prefill: ChoosePrefill
    decode: ChooseDecode
