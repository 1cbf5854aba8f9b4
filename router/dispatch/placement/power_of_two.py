"""Power of two choices: the better of two candidates drawn at random.

With many routers, each of which knows only its own load, all would send to the actor that looks idle to all of them;
two random choices keep the longest queue at log log n without that herd (Mitzenmacher 2001). What is cached is looked
at first: holders of a cached beginning are among the drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.dispatch.placement.cache_aware import cheapest_encoders, cheapest_prefill
from router.dispatch.placement.candidates import Candidate, Chance, MediaWork, PlacementPolicy
from router.dispatch.placement.least_loaded import most_free_pages


def encoders_of_two(items: Sequence[MediaWork], candidates: Sequence[Candidate], chance: Chance) -> list[Candidate]:
    """Two draws for each content, and who holds it."""
    chosen: dict[str, Candidate] = {}
    for item in items:
        if item.content_key not in chosen:
            drawn = _two(candidates, chance)
            drawn += [c for c in candidates if item.content_key in c.cached_content and c not in drawn]
            [chosen[item.content_key]] = cheapest_encoders([item], drawn, chance)
    return [chosen[item.content_key] for item in items]


def prefill_of_two(num_tokens: int, candidates: Sequence[Candidate], chance: Chance) -> Candidate:
    most_cached = max(candidates, key=lambda candidate: candidate.num_cached_tokens)
    drawn = _two(candidates, chance)
    return cheapest_prefill(num_tokens, [*drawn, most_cached], chance)


def decode_of_two(candidates: Sequence[Candidate], chance: Chance) -> Candidate:
    return most_free_pages(_two(candidates, chance), chance)


def _two(candidates: Sequence[Candidate], chance: Chance) -> list[Candidate]:
    return list(candidates) if len(candidates) < 3 else chance.random.sample(list(candidates), 2)


POWER_OF_TWO = PlacementPolicy(encoders_of_two, prefill_of_two, decode_of_two)
