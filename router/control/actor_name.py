"""How actors that outlive their controller are named in Ray's namespace, so that the next one finds them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from router.control.membership import StageName

CONTROLLER = "triptych.controller"
_PREFIX = "triptych.stage"


@dataclass(frozen=True)
class ActorName:
    """One process of an actor. stage: that it was launched for; token: of the actor; rank: of the process in it."""

    stage: StageName
    token: str
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.actor}.{self.rank}"

    @property
    def actor(self) -> str:
        """What all processes of the actor have in common; also the name of its placement group."""
        return f"{_PREFIX}.{self.stage}.{self.token}"

    def of_rank(self, rank: int) -> ActorName:
        return replace(self, rank=rank)

    @classmethod
    def new(cls, stage: StageName) -> ActorName:
        return cls(stage, uuid.uuid4().hex[:12])

    @classmethod
    def parse(cls, text: str) -> ActorName | None:
        """None for the name of anything else."""
        prefix, _, rest = text.partition(f"{_PREFIX}.")
        parts = rest.split(".")
        if prefix or len(parts) != 3 or parts[0] not in list(StageName) or not parts[2].isdecimal():
            return None
        return cls(StageName(parts[0]), parts[1], int(parts[2]))
