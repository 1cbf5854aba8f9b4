"""Placement policies: which encoders, which prefill actor and which decode actor serve a request.

A policy only chooses among the candidates that it is given; it holds no members and asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.control.membership import Member
from router.dispatch.content_affinity import ContentAffinity
from router.dispatch.loads import Load, LoadLedger
from triptych.errors import ConfigurationError


@dataclass(frozen=True)
class MediaWork:
    """One picture or video as far as its placement depends on it."""

    content_key: str
    num_patches: int


class PlacementPolicy(Protocol):
    """Chooses members. Every candidate list is non-empty; the same content key within a call gets the same encoder."""

    def choose_encoders(
        self, items: Sequence[MediaWork], candidates: Sequence[Member], loads: LoadLedger
    ) -> list[Member]:
        """One encoder for each item."""
        ...

    def choose_prefill(self, candidates: Sequence[Member], loads: LoadLedger) -> Member:
        """Who prefills; candidates are of the stages prefill and prefill_decode."""
        ...

    def choose_decode(self, candidates: Sequence[Member], loads: LoadLedger) -> Member:
        """Who decodes; candidates are of the stage decode."""
        ...


class LeastLoaded:
    """The candidate with the least outstanding work, in the unit of its stage.

    A picture seen before goes to the encoder that has it in its cache. The others of a request are split over the
    encoders by longest processing time first, so that all are done at about the same time (Graham 1969).
    """

    def __init__(self) -> None:
        self._affinity = ContentAffinity()

    def choose_encoders(
        self, items: Sequence[MediaWork], candidates: Sequence[Member], loads: LoadLedger
    ) -> list[Member]:
        by_id = {member.actor_id: member for member in candidates}
        patches = {actor_id: loads.of(actor_id).num_patches for actor_id in by_id}
        chosen: dict[str, str] = {}
        for item in sorted(items, key=lambda item: item.num_patches, reverse=True):
            if item.content_key in chosen:
                continue
            actor_id = self._affinity.actor_of(item.content_key)
            if actor_id not in by_id:
                actor_id = min(patches, key=patches.__getitem__)
                patches[actor_id] += item.num_patches
            chosen[item.content_key] = actor_id
            self._affinity.remember(item.content_key, actor_id)
        return [by_id[chosen[item.content_key]] for item in items]

    def choose_prefill(self, candidates: Sequence[Member], loads: LoadLedger) -> Member:
        return _least(candidates, loads, lambda load: (load.num_prompt_tokens, load.num_requests))

    def choose_decode(self, candidates: Sequence[Member], loads: LoadLedger) -> Member:
        return _least(candidates, loads, lambda load: (load.num_requests, load.num_prompt_tokens))


class RoundRobin:
    """Each candidate in turn, whatever its load."""

    def __init__(self) -> None:
        self._turns = {"encode": 0, "prefill": 0, "decode": 0}

    def choose_encoders(
        self, items: Sequence[MediaWork], candidates: Sequence[Member], loads: LoadLedger
    ) -> list[Member]:
        keys = dict.fromkeys(item.content_key for item in items)
        chosen = {key: self._next("encode", candidates) for key in keys}
        return [chosen[item.content_key] for item in items]

    def choose_prefill(self, candidates: Sequence[Member], loads: LoadLedger) -> Member:
        return self._next("prefill", candidates)

    def choose_decode(self, candidates: Sequence[Member], loads: LoadLedger) -> Member:
        return self._next("decode", candidates)

    def _next(self, kind: str, candidates: Sequence[Member]) -> Member:
        turn = self._turns[kind]
        self._turns[kind] = turn + 1
        return candidates[turn % len(candidates)]


PLACEMENT_POLICIES: dict[str, Callable[[], PlacementPolicy]] = {
    "least_loaded": LeastLoaded,
    "round_robin": RoundRobin,
}


def create_placement_policy(name: str) -> PlacementPolicy:
    """A new policy of that name; raises ConfigurationError naming those there are."""
    try:
        return PLACEMENT_POLICIES[name]()
    except KeyError:
        raise ConfigurationError(
            f"router.placement is {name!r}, expected one of {', '.join(PLACEMENT_POLICIES)}", field="router.placement"
        ) from None


def _least(candidates: Sequence[Member], loads: LoadLedger, cost: Callable[[Load], tuple[int, int]]) -> Member:
    """The cheapest candidate; the first of equals, so that a choice can be foretold."""
    return min(candidates, key=lambda member: cost(loads.of(member.actor_id)))
