"""RoleGate: which work an LLM actor takes, and what it still has from the role before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from types import MappingProxyType

from llm_service.role import Role
from triptych.errors import FailedPrecondition, TriptychError, Unavailable


class Work(Enum):
    """What a call asks for."""

    PREFILL = auto()
    # With the KV pages of another actor.
    DECODE = auto()
    # Both at once: a Decode call without a KV ticket.
    PREFILL_DECODE = auto()


_TAKEN: Mapping[Role, frozenset[Work]] = MappingProxyType(
    {
        Role.PREFILL: frozenset({Work.PREFILL}),
        Role.DECODE: frozenset({Work.DECODE}),
        Role.PREFILL_DECODE: frozenset(Work),
    }
)
_REFUSALS: Mapping[Work, str] = MappingProxyType(
    {
        Work.PREFILL: "this actor has the role {role}; send Prefill to an actor with the role prefill",
        Work.DECODE: "this actor has the role {role}; send Decode to an actor with the role decode",
        Work.PREFILL_DECODE: "kv_ticket is missing, and this actor has the role {role}: only prefill_decode prefills "
        "by itself",
    }
)


class RoleGate:
    """Lives on the stage's event loop.

    grace_s: routers may have sent work of the role before when they had not heard of the switch. So long it is taken;
    later it is refused as by an actor that drains, so that they try another.
    """

    def __init__(self, role: Role, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.role = role
        self._grace_s = grace_s
        self._clock = clock
        # When each role was left.
        self._left_s: dict[Role, float] = {}
        self._held: list[tuple[str, Work]] = []

    def switch(self, role: Role) -> None:
        """Takes the work of `role` from now on."""
        if role is self.role:
            return
        self._left_s[self.role] = self._clock()
        self._left_s.pop(role, None)
        self.role = role

    @contextmanager
    def hold(self, request_id: str, work: Work) -> Iterator[None]:
        """Counts a request for the body's duration. Raises FailedPrecondition for work of another role, Unavailable
        for that of a role it had."""
        self.check(work)
        self._held.append((request_id, work))
        try:
            yield
        finally:
            self._held.remove((request_id, work))

    def check(self, work: Work) -> None:
        """Raises as `hold`."""
        if work in _TAKEN[self.role]:
            return
        left_s = [at_s for role, at_s in self._left_s.items() if work in _TAKEN[role]]
        if any(self._clock() - at_s < self._grace_s for at_s in left_s):
            return
        message = _REFUSALS[work].format(role=self.role)
        error: type[TriptychError] = Unavailable if left_s else FailedPrecondition
        raise error(message, field="kv_ticket" if work is Work.PREFILL_DECODE else "")

    def has_streams(self) -> bool:
        """Whether tokens may leave this actor: it decodes, or has decoded."""
        return any(Work.DECODE in _TAKEN[role] for role in (self.role, *self._left_s))

    def misplaced(self) -> list[str]:
        """Requests whose work is not of the role that the actor has now."""
        return [request_id for request_id, work in self._held if work not in _TAKEN[self.role]]
