"""What a role policy looks at, what it remembers and what it answers. Frozen: a policy is a function of these alone.

The shape is that of the scaling policies: `(context) -> (moves, state)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from router.control.membership import StageName
from router.control.scaling.context import Bounds
from triptych.config.roles import RolesSection


@dataclass(frozen=True)
class Move:
    from_stage: StageName
    to_stage: StageName


@dataclass(frozen=True)
class StageLoad:
    """One stage: its actors, and how many of them its work would keep as busy as they should be, as a real number.

    steady: what arrives and is held. waiting_s: actor-seconds of work that waits.
    """

    num_actors: int
    steady: float
    waiting_s: float = 0.0
    bounds: Bounds = field(default_factory=lambda: Bounds(1, 1 << 10))


@dataclass(frozen=True)
class RoleState:
    """What a policy remembers between two calls. Times on the clock of the context."""

    seen_s: float | None = None
    steady: Mapping[StageName, float] = field(default_factory=dict)  # smoothed
    pays_since_s: float | None = None
    moved_s: float = float("-inf")


@dataclass(frozen=True)
class RoleContext:
    """All stages that have actors, at one moment. move_s: how long each possible move takes an actor away, as measured;
    a move that is not in it is not possible. smoothing_s: time constant of the average of `steady`."""

    now_s: float
    stages: Mapping[StageName, StageLoad]
    move_s: Mapping[Move, float]
    smoothing_s: float
    settings: RolesSection
    state: RoleState = field(default_factory=RoleState)


RolePolicy = Callable[[RoleContext], tuple[tuple[Move, ...], RoleState]]
