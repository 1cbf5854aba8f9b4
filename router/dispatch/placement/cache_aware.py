"""Work goes where its beginning is cached already, unless the queue there costs more than the cache saves."""

from __future__ import annotations

from collections.abc import Sequence

from router.dispatch.placement.candidates import Candidate, Chance, MediaWork, PlacementPolicy
from router.dispatch.placement.least_loaded import most_free_pages

# A picture follows its cached embedding to an encoder that is that many times its own cost further behind than the
# idlest one. A hit does not wait in the queue at all, but what is remembered here may have been evicted there.
AFFINITY_PATIENCE = 4


def cheapest_encoders(items: Sequence[MediaWork], candidates: Sequence[Candidate], chance: Chance) -> list[Candidate]:
    """Longest processing time first, as `split_by_patches`, with cached items costing nothing where they are."""
    backlog = [candidate.load.num_patches for candidate in candidates]
    chosen: dict[str, Candidate] = {}
    for item in sorted(items, key=lambda item: item.num_patches, reverse=True):
        if item.content_key in chosen:
            continue
        idlest = min(range(len(candidates)), key=backlog.__getitem__)
        index = _cached_at(item, candidates, backlog, backlog[idlest] + AFFINITY_PATIENCE * item.num_patches)
        if index is None:
            index = idlest
            backlog[index] += item.num_patches
        chosen[item.content_key] = candidates[index]
    return [chosen[item.content_key] for item in items]


def cheapest_prefill(num_tokens: int, candidates: Sequence[Candidate], chance: Chance) -> Candidate:
    """The actor that has the fewest tokens to compute until this prompt is done: what waits there and what of the
    prompt is not in its prefix cache."""
    return min(
        candidates,
        key=lambda candidate: (
            candidate.load.num_prompt_tokens + num_tokens - min(candidate.num_cached_tokens, num_tokens),
            candidate.load.num_requests,
        ),
    )


def _cached_at(
    item: MediaWork, candidates: Sequence[Candidate], backlog: Sequence[int], max_backlog: int
) -> int | None:
    """The idlest encoder that holds the item's embedding, when its backlog is bearable."""
    holders = [
        index
        for index, candidate in enumerate(candidates)
        if item.content_key in candidate.cached_content and backlog[index] <= max_backlog
    ]
    return min(holders, key=backlog.__getitem__, default=None)


CACHE_AWARE = PlacementPolicy(cheapest_encoders, cheapest_prefill, most_free_pages)
