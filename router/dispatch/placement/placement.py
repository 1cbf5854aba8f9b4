"""The actors that one walk goes to."""

from __future__ import annotations

from dataclasses import dataclass

from router.control.membership import Member
from router.dispatch.encode_place import EncodeReason


@dataclass(frozen=True)
class Placement:
    """`encoders`: one for each media item, none when the LLM actor encodes. `prefill`: none when `decode` does both."""

    encoders: tuple[Member, ...]
    prefill: Member | None
    decode: Member
    encode_reason: EncodeReason = EncodeReason.NO_MEDIA

    @property
    def members(self) -> set[Member]:
        """All of them."""
        return {*self.encoders, self.first_language_actor, self.decode}

    @property
    def first_language_actor(self) -> Member:
        """Who takes the embeddings."""
        return self.prefill or self.decode
