"""A day of requests through the three stages, in virtual time, under a policy or with fixed counts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

from benchmarks.scaling.pool import DecodePool, FlowPool
from benchmarks.scaling.rates import ActorRates
from benchmarks.scaling.trace import Arrival
from router.control.membership import StageName
from router.control.scaling.attainment import AnswerTimes, Attainment, late_stages
from router.control.scaling.context import (
    ActorCounts,
    Bounds,
    Flow,
    Holding,
    ScalingContext,
    ScalingPolicy,
    ScalingState,
)
from triptych.config.scaling import ScalingSection

ENCODER, PREFILL, DECODE = StageName.ENCODER, StageName.PREFILL, StageName.DECODE
STAGES = (ENCODER, PREFILL, DECODE)
Allocation = dict[StageName, int]
BEGIN = "begin"


@dataclass(frozen=True)
class Decision:
    at_s: float
    stage: StageName
    target: int
    reason: str


@dataclass
class Outcome:
    """attained: share of requests within the bounds of both TTFT and TPOT."""

    num_requests: int = 0
    num_late: int = 0
    late_by: dict[StageName, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    actor_seconds: dict[StageName, float] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    @property
    def attained(self) -> float:
        return 1.0 - self.num_late / max(1, self.num_requests)

    def add(self, other: Outcome, at_s: float) -> None:
        """Counts another stretch of time, which began at `at_s`, to this one."""
        self.num_requests += other.num_requests
        self.num_late += other.num_late
        for stage in STAGES:
            self.late_by[stage] += other.late_by[stage]
            self.actor_seconds[stage] = self.actor_seconds.get(stage, 0.0) + other.actor_seconds[stage]
        self.decisions += [replace(decision, at_s=decision.at_s + at_s) for decision in other.decisions]

    @property
    def num_changes(self) -> int:
        """Decisions but for those that were there at the beginning."""
        return sum(decision.reason != BEGIN for decision in self.decisions)

    @property
    def num_turns(self) -> int:
        """How often a stage that had grown shrank, or the other way round."""
        turns = 0
        for stage in STAGES:
            targets = [decision.target for decision in self.decisions if decision.stage is stage]
            directions = [after > before for before, after in pairwise(targets) if after != before]
            turns += sum(before != after for before, after in pairwise(directions))
        return turns

    @property
    def total_actor_seconds(self) -> float:
        return sum(self.actor_seconds.values())


class Simulation:
    """`run` once. With `policy` None the counts stay as they begin."""

    def __init__(
        self,
        settings: ScalingSection,
        rates: ActorRates,
        begin: Allocation,
        policy: ScalingPolicy | None = None,
        max_actors: int = 64,
    ) -> None:
        self._settings = settings
        self._rates = rates
        self._policy = policy
        self._bounds = Bounds(1, max_actors)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        self._encoder = FlowPool(rates.patches_per_s, rates.start_s, begin[ENCODER])
        self._prefill = FlowPool(rates.prompt_tokens_per_s, rates.start_s, begin[PREFILL])
        self._decode = DecodePool(rates, begin[DECODE], self._schedule)
        self._attainment = Attainment(settings)
        self._states = {stage: ScalingState() for stage in STAGES}
        self._arrived = {ENCODER: 0.0, PREFILL: 0.0}
        self._outcome = Outcome()

    def run(self, arrivals: Sequence[Arrival]) -> Outcome:
        """Until the last request is answered."""
        for stage, pool in self._pools():
            self._outcome.decisions.append(Decision(0.0, stage, pool.wanted, BEGIN))
        next_tick = self._settings.interval_s if self._policy is not None else float("inf")
        position, events, now_s = 0, self._events, 0.0
        while position < len(arrivals) or events:
            arrival_s = arrivals[position].at_s if position < len(arrivals) else float("inf")
            event_s = events[0][0] if events else float("inf")
            if next_tick <= min(arrival_s, event_s):
                now_s = next_tick
                self._tick(now_s)
                next_tick += self._settings.interval_s
            elif arrival_s <= event_s:
                now_s = arrival_s
                self._arrive(arrivals[position])
                position += 1
            else:
                now_s, _, action = heapq.heappop(events)
                action(now_s)
        for stage, pool in self._pools():
            pool.close(now_s)
            self._outcome.actor_seconds[stage] = pool.actor_seconds
        return self._outcome

    def _pools(self) -> tuple[tuple[StageName, FlowPool | DecodePool], ...]:
        return (ENCODER, self._encoder), (PREFILL, self._prefill), (DECODE, self._decode)

    def _schedule(self, at_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), action))

    def _arrive(self, request: Arrival) -> None:
        if not request.num_patches:
            self._begin_prefill(request, request.at_s)
            return

        def encoded(finish_s: float, begun_s: float) -> None:
            self._schedule(finish_s, lambda now_s: self._begin_prefill(request, now_s))

        self._encoder.submit(request.at_s, request.num_patches, encoded)

    def _begin_prefill(self, request: Arrival, asked_s: float) -> None:
        def prefilled(finish_s: float, begun_s: float) -> None:
            self._schedule(finish_s, lambda now_s: self._begin_decode(request, asked_s, now_s))

        self._prefill.submit(asked_s, request.prompt_tokens, prefilled)

    def _begin_decode(self, request: Arrival, prefill_asked_s: float, first_s: float) -> None:
        times = AnswerTimes(
            prompt_tokens=request.prompt_tokens,
            ttft_s=first_s - request.at_s,
            tpot_s=None,
            encode_s=prefill_asked_s - request.at_s,
            prefill_s=first_s - prefill_asked_s,
        )
        num_later = request.output_tokens - 1
        if not num_later:
            self._answered(first_s, times)
            return

        def decoded(now_s: float) -> None:
            tpot_s = (now_s - first_s) / num_later
            self._answered(now_s, replace(times, tpot_s=tpot_s))

        self._decode.submit(first_s, request.prompt_tokens + num_later, num_later, decoded)

    def _answered(self, now_s: float, times: AnswerTimes) -> None:
        self._outcome.num_requests += 1
        if not self._attainment.note(now_s, times):
            self._outcome.num_late += 1
            for stage in late_stages(times, self._settings):
                self._outcome.late_by[stage] += 1

    def _tick(self, now_s: float) -> None:
        assert self._policy is not None
        for stage, pool in self._pools():
            context = self._context(stage, pool, now_s)
            target, self._states[stage] = self._policy(context)
            if target != pool.wanted:
                pool.scale(now_s, target)
                self._outcome.decisions.append(Decision(now_s, stage, target, self._states[stage].reason))

    def _context(self, stage: StageName, pool: FlowPool | DecodePool, now_s: float) -> ScalingContext:
        starting = pool.num_starting(now_s)
        flows: tuple[Flow, ...] = ()
        holdings: tuple[Holding, ...] = ()
        if isinstance(pool, FlowPool):
            arriving = (pool.arrived - self._arrived[stage]) / self._settings.interval_s
            self._arrived[stage] = pool.arrived
            rate = self._rates.patches_per_s if stage is ENCODER else self._rates.prompt_tokens_per_s
            flows = (Flow(arriving, pool.waiting_work(now_s), rate),)
        else:
            kv_tokens, num_streams = pool.held()
            streams = self._rates.max_streams(self._settings.tpot_s)
            holdings = (Holding(kv_tokens, self._rates.kv_tokens), Holding(num_streams, streams))
        return ScalingContext(
            now_s=now_s,
            actors=ActorCounts(pool.wanted, pool.wanted - starting, starting),
            bounds=self._bounds,
            start_s=self._rates.start_s,
            settings=self._settings,
            flows=flows,
            holdings=holdings,
            attainment=self._attainment.of(stage, now_s),
            state=self._states[stage],
        )
