"""Placement policies by name: which encoders, which prefill actor and which decode actor serve a request.

A policy is three pure functions over candidates: it holds nothing, asks nobody, and can be tested on paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from router.dispatch.placement.cache_aware import CACHE_AWARE
from router.dispatch.placement.candidates import (
    Candidate,
    Chance,
    MediaWork,
    PlacementPolicy,
)
from router.dispatch.placement.least_loaded import LEAST_LOADED
from router.dispatch.placement.placement import Placement
from router.dispatch.placement.power_of_two import POWER_OF_TWO
from router.dispatch.placement.round_robin import ROUND_ROBIN
from triptych.errors import ConfigurationError

PLACEMENT_POLICIES: Mapping[str, PlacementPolicy] = MappingProxyType(
    {
        "cache_aware": CACHE_AWARE,
        "least_loaded": LEAST_LOADED,
        "power_of_two": POWER_OF_TWO,
        "round_robin": ROUND_ROBIN,
    }
)


def placement_policy(name: str) -> PlacementPolicy:
    """The policy of that name; raises ConfigurationError naming those there are."""
    try:
        return PLACEMENT_POLICIES[name]
    except KeyError:
        raise ConfigurationError(
            f"router.placement is {name!r}, expected one of {', '.join(PLACEMENT_POLICIES)}", field="router.placement"
        ) from None


__all__ = ["PLACEMENT_POLICIES", "Candidate", "Chance", "MediaWork", "Placement", "PlacementPolicy", "placement_policy"]
