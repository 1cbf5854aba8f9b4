"""What a scaling policy looks at, and what it remembers. Frozen: a policy is a function of these alone.

The shape is that of Ray Serve's autoscaling policies, `(context) -> (target, state)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from router.control.scaling.window import SlidingExtreme
from triptych.config.scaling import ScalingSection


class Reason(StrEnum):
    """Why a target is what it is. The label set of a metric: keep it small."""

    STEADY = "steady"
    LOAD = "load"
    BACKLOG = "backlog"  # what waits already takes longer than a start
    SLO = "slo"  # answers came too late, so the load counts for more
    WORK_WAITS = "work_waits"  # at an empty stage
    IDLE = "idle"
    BOUNDS = "bounds"
    MIX = "mix"  # an actor moved to another stage, where the mix of requests needs it more
    MANUAL = "manual"


@dataclass(frozen=True)
class Flow:
    """Work that passes through a stage: patches of encoders, prompt tokens of prefill.

    work_per_s: what one actor gets done in a second, as measured.
    """

    arriving_per_s: float
    waiting: float
    work_per_s: float


@dataclass(frozen=True)
class Holding:
    """What stays on an actor for a while: KV tokens and running streams of decode. capacity: of one actor."""

    held: float
    capacity: float


@dataclass(frozen=True)
class ActorCounts:
    """wanted: what was decided last; starting and ready come to it, draining ones no longer count."""

    wanted: int
    ready: int = 0
    starting: int = 0
    draining: int = 0


@dataclass(frozen=True)
class Bounds:
    min_actors: int
    max_actors: int

    def clamp(self, num_actors: int) -> int:
        return min(max(num_actors, self.min_actors), self.max_actors)


@dataclass(frozen=True)
class ScalingState:
    """What a policy remembers of one stage between two calls. Times on the clock of the context."""

    reason: Reason = Reason.STEADY
    began_s: float | None = None
    seen_s: float | None = None
    work_s: float | None = None  # when there last was any work
    grew_s: float = float("-inf")
    shrank_s: float = float("-inf")
    rates: tuple[float, ...] = ()  # smoothed arrivals of each flow
    variances: tuple[float, ...] = ()  # of each flow's arrivals, of what comes in a second
    correction: float = 1.0
    lowest: SlidingExtreme = field(default_factory=SlidingExtreme)
    highest: SlidingExtreme = field(default_factory=SlidingExtreme)


@dataclass(frozen=True)
class ScalingContext:
    """One stage at one moment.

    attainment: share of recent answers that this stage did not make late; None when there were too few.
    start_s: how long an actor of the stage takes to start, as measured.
    """

    now_s: float
    actors: ActorCounts
    bounds: Bounds
    start_s: float
    settings: ScalingSection
    flows: tuple[Flow, ...] = ()
    holdings: tuple[Holding, ...] = ()
    attainment: float | None = None
    state: ScalingState = field(default_factory=ScalingState)

    @property
    def has_work(self) -> bool:
        return any(flow.waiting > 0 or flow.arriving_per_s > 0 for flow in self.flows) or any(
            holding.held > 0 for holding in self.holdings
        )


ScalingPolicy = Callable[[ScalingContext], tuple[int, ScalingState]]
