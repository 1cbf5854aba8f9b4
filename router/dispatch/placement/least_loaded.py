"""The actor with the least outstanding work, in the unit of its stage. Caches are not looked at."""

from __future__ import annotations

from collections.abc import Sequence

from router.dispatch.placement.candidates import Candidate, Chance, MediaWork, PlacementPolicy


def split_by_patches(items: Sequence[MediaWork], candidates: Sequence[Candidate], chance: Chance) -> list[Candidate]:
    """The items over the encoders by longest processing time first, so that all are done at about the same time
    (Graham 1969)."""
    backlog = [candidate.load.num_patches for candidate in candidates]
    chosen: dict[str, Candidate] = {}
    for item in sorted(items, key=lambda item: item.num_patches, reverse=True):
        if item.content_key not in chosen:
            index = min(range(len(candidates)), key=backlog.__getitem__)
            backlog[index] += item.num_patches
            chosen[item.content_key] = candidates[index]
    return [chosen[item.content_key] for item in items]


def least_prompt_tokens(num_tokens: int, candidates: Sequence[Candidate], chance: Chance) -> Candidate:
    return min(candidates, key=lambda candidate: (candidate.load.num_prompt_tokens, candidate.load.num_requests))


def most_free_pages(candidates: Sequence[Candidate], chance: Chance) -> Candidate:
    """By the part of the KV cache that is spoken for: actors may have caches of different sizes."""
    return min(candidates, key=lambda candidate: (candidate.kv_use, candidate.load.num_requests))


LEAST_LOADED = PlacementPolicy(split_by_patches, least_prompt_tokens, most_free_pages)
