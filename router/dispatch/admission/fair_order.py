"""Whose turn it is: fair between tenants, cheap kinds first, and nobody waits for ever. Plain functions, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from router.dispatch.loads import Load


class CostClass(IntEnum):
    """Kinds of requests by what they usually cost; the smaller goes first."""

    TEXT = 0
    PICTURE = 1
    VIDEO = 2


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request in line. arrived_s: on any clock. finish_tag: where its tenant stands with it (see `FairTags`)."""

    load: Load
    cost_class: CostClass
    arrived_s: float
    finish_tag: float


@dataclass(frozen=True)
class Capacity:
    """What all actors of the stages together may have of each kind of work; 0 stands for no bound."""

    num_patches: int
    num_prompt_tokens: int
    num_kv_tokens: int

    def fits(self, load: Load, in_flight: Load) -> bool:
        """Whether `load` may join `in_flight`. What is larger than the whole may go alone: stages refuse what they
        can't do at all, with a better reason."""
        pairs = (
            (load.num_patches, in_flight.num_patches, self.num_patches),
            (load.num_prompt_tokens, in_flight.num_prompt_tokens, self.num_prompt_tokens),
            (load.num_kv_tokens, in_flight.num_kv_tokens, self.num_kv_tokens),
        )
        return all(not own or not bound or not taken or taken + own <= bound for own, taken, bound in pairs)

    def share_of(self, load: Load) -> float:
        """The largest part of any stage that a load asks for (its dominant share, Ghodsi et al. 2011)."""
        pairs = (
            (load.num_patches, self.num_patches),
            (load.num_prompt_tokens, self.num_prompt_tokens),
            (load.num_kv_tokens, self.num_kv_tokens),
        )
        return max((own / bound for own, bound in pairs if bound), default=0.0)


class FairTags:
    """Start-time fair queueing (Goyal, Vin, Cheng 1996): each tenant's requests are tagged on a line of virtual time.

    A request starts where its tenant's last one finished, or at the present, and finishes its share later: a tenant
    that asks for much is served as often as one that asks for little, by cost and not by count.
    """

    def __init__(self) -> None:
        self._present = 0.0
        self._finished: dict[str, float] = {}

    def tag(self, tenant: str, share: float) -> float:
        """The finish tag of a request that arrives now."""
        finish = max(self._present, self._finished.get(tenant, 0.0)) + share
        self._finished[tenant] = finish
        return finish

    def advance(self, finish_tag: float, share: float) -> None:
        """A request of that tag begins: the present moves to its start. Tenants that it passed are forgotten."""
        self._present = max(self._present, finish_tag - share)
        self._finished = {tenant: tag for tenant, tag in self._finished.items() if tag > self._present}


def next_turn(
    waiting: Sequence[Waiting], in_flight: Load, capacity: Capacity, now_s: float, ageing_s: float
) -> Waiting | None:
    """Who goes next, or None when nobody may.

    Order: cost class, then finish tag. After every `ageing_s` of waiting a request counts as one class cheaper; once
    it has been of the cheapest for that long it is overdue: it goes before all that came later, and while there is no
    room for it nobody goes.
    """
    for request in sorted(waiting, key=lambda request: _rank(request, now_s, ageing_s)):
        if capacity.fits(request.load, in_flight):
            return request
        if _num_steps(request, now_s, ageing_s) > request.cost_class:
            return None
    return None


def _rank(request: Waiting, now_s: float, ageing_s: float) -> tuple[int, float]:
    """Sort key: -1 for those that are overdue, else the class that a request counts as; then who was first."""
    num_steps = _num_steps(request, now_s, ageing_s)
    if num_steps > request.cost_class:
        return -1, request.arrived_s
    return request.cost_class - num_steps, request.finish_tag


def _num_steps(request: Waiting, now_s: float, ageing_s: float) -> int:
    return int((now_s - request.arrived_s) / ageing_s)
