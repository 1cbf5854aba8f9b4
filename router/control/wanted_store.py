"""What is wanted of each stage, kept beyond the end of a controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.control.membership import StageName


@dataclass(frozen=True)
class Wanted:
    """actors: of every stage; pinned: stages whose number an operator said."""

    actors: Mapping[StageName, int]
    pinned: frozenset[StageName]


class WantedStore:
    """This one forgets: a controller that ends with its actors needs no more. `detached/ray_store.py` keeps it."""

    def load(self) -> Wanted | None:
        """What was saved last; None when nothing was."""
        return None

    def save(self, wanted: Wanted) -> None:
        """Blocks for milliseconds at most."""
