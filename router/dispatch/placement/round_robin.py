"""Each candidate in turn, whatever its load: the baseline that other policies are held against."""

from __future__ import annotations

from collections.abc import Sequence

from router.dispatch.placement.candidates import Candidate, Chance, MediaWork, PlacementPolicy


def encoders_in_turn(items: Sequence[MediaWork], candidates: Sequence[Candidate], chance: Chance) -> list[Candidate]:
    """Contents of one request begin at its turn and go round."""
    keys = dict.fromkeys(item.content_key for item in items)
    chosen = {key: candidates[(chance.turn + index) % len(candidates)] for index, key in enumerate(keys)}
    return [chosen[item.content_key] for item in items]


def prefill_in_turn(num_tokens: int, candidates: Sequence[Candidate], chance: Chance) -> Candidate:
    return candidates[chance.turn % len(candidates)]


def decode_in_turn(candidates: Sequence[Candidate], chance: Chance) -> Candidate:
    return candidates[chance.turn % len(candidates)]


ROUND_ROBIN = PlacementPolicy(encoders_in_turn, prefill_in_turn, decode_in_turn)
