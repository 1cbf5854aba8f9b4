"""The policy load_and_slo: as many actors as the measured load needs, a few more while answers come too late."""

from __future__ import annotations

import math
from dataclasses import replace

from router.control.scaling.context import Reason, ScalingContext, ScalingState

# What keeps 3.0000000001 actors from being rounded up to 4.
_ROUNDING = 1e-6
# While answers are late the correction grows by a tenth in so many seconds; it is forgotten a hundred times slower, so
# that a stage which needed it does not try every few minutes whether it still does.
_CORRECTION_GROWTH_S = 10.0
_CORRECTION_DECAY_S = 3_600.0
# Over how long the variation of arrivals is measured: long beside a burst, short beside a day.
_VARIATION_S = 1_200.0


def load_and_slo(context: ScalingContext) -> tuple[int, ScalingState]:
    """Grows to what the lowest load of about a start's time needs, shrinks to what the highest of down_window_s needs.

    Between the two the stage stays as it is. So a burst that is over before an actor could have started changes
    nothing, unless what already waits would keep the present actors busy for longer than a start. What a stage needs is
    its load and, as square-root staffing has it, headroom_deviations of what arrives within a bound on TTFT.
    """
    state = _observed(context)
    wanted = context.actors.wanted
    target, reason = _wish(context, state)
    if target > wanted and context.now_s - state.grew_s < context.settings.up_cooldown_s and wanted > 0:
        target, reason = wanted, Reason.STEADY
    changed_s = max(state.grew_s, state.shrank_s)
    if target < wanted and context.now_s - changed_s < context.settings.down_cooldown_s:
        target, reason = wanted, Reason.STEADY
    if (bounded := context.bounds.clamp(target)) != target:
        target, reason = bounded, Reason.STEADY if bounded == wanted else Reason.BOUNDS
    if target > wanted:
        state = replace(state, grew_s=context.now_s)
    elif target < wanted:
        state = replace(state, shrank_s=context.now_s)
    return target, replace(state, reason=reason)


def _wish(context: ScalingContext, state: ScalingState) -> tuple[int, Reason]:
    """Before cool-downs and bounds."""
    wanted = context.actors.wanted
    lowest = _num_actors(state.lowest.extreme) if _has_seen(context, state, _burst_s(context)) else 0
    highest = _num_actors(state.highest.extreme * (1 + context.settings.hysteresis))
    if wanted == 0:
        return (max(1, lowest), Reason.WORK_WAITS) if context.has_work else (0, Reason.STEADY)
    urgent = _backlog_actors(context, state)
    if (most := max(lowest, urgent)) > wanted:
        if urgent > lowest:
            return most, Reason.BACKLOG
        is_by_load = _num_actors(state.lowest.extreme / state.correction) > wanted
        return most, Reason.LOAD if is_by_load else Reason.SLO
    if not _has_seen(context, state, context.settings.down_window_s):
        return wanted, Reason.STEADY
    if highest < wanted and _has_backlog(context, highest):
        return wanted, Reason.STEADY
    if highest == 0:
        is_idle = context.now_s - (state.work_s or 0.0) >= context.settings.zero_after_s
        return (0, Reason.IDLE) if is_idle and not context.has_work else (1, Reason.LOAD)
    return (highest, Reason.LOAD) if highest < wanted else (wanted, Reason.STEADY)


def _observed(context: ScalingContext) -> ScalingState:
    """The state with this moment's load and attainment in it."""
    before, now_s, settings = context.state, context.now_s, context.settings
    elapsed_s = 0.0 if before.seen_s is None else max(0.0, now_s - before.seen_s)
    weight = 1.0 if before.seen_s is None else 1.0 - math.exp(-elapsed_s / settings.smoothing_s)
    arriving = [flow.arriving_per_s for flow in context.flows]
    rates = tuple(old + weight * (new - old) for old, new in zip(before.rates or arriving, arriving, strict=True))
    slow = 1.0 - math.exp(-elapsed_s / _VARIATION_S)
    variances = tuple(
        old + slow * ((new - rate) ** 2 * elapsed_s - old)
        for old, new, rate in zip(before.variances or [0.0] * len(arriving), arriving, rates, strict=True)
    )
    began_s = now_s if before.began_s is None else before.began_s
    state = replace(
        before,
        began_s=began_s,
        seen_s=now_s,
        work_s=now_s if context.has_work or before.work_s is None else before.work_s,
        rates=rates,
        variances=variances,
        correction=_correction(context, elapsed_s),
    )
    load = _load(context, state)
    demand = max([load, *(share * state.correction for share in _with_backlog(context, state))])
    return replace(
        state,
        lowest=state.lowest.with_low(now_s, demand, _burst_s(context)),
        highest=state.highest.with_high(now_s, load, settings.down_window_s),
    )


def _load(context: ScalingContext, state: ScalingState) -> float:
    """Actors that what arrives and is held needs, as a real number; the scarcest resource decides.

    A flow's variance is that of a rate measured over one second; over ttft_s, which it may wait, it is as much smaller.
    """
    settings = context.settings
    flows = [
        max(
            rate / settings.target_utilization,
            rate + settings.headroom_deviations * math.sqrt(variance / settings.ttft_s),
        )
        / flow.work_per_s
        for rate, variance, flow in zip(state.rates, state.variances, context.flows, strict=True)
    ]
    holdings = [holding.held / holding.capacity / settings.target_utilization for holding in context.holdings]
    return state.correction * max([*flows, *holdings], default=0.0)


def _with_backlog(context: ScalingContext, state: ScalingState) -> list[float]:
    """Actors that work off what waits within the time of one start, beside what arrives."""
    return [
        (rate + flow.waiting / context.start_s) / flow.work_per_s / context.settings.target_utilization
        for rate, flow in zip(state.rates, context.flows, strict=True)
    ]


def _backlog_actors(context: ScalingContext, state: ScalingState) -> int:
    """Actors that bring what waits down to one start's work, where the wanted ones would take longer; else 0."""
    wanted = context.actors.wanted
    needs = [
        rate / flow.work_per_s + flow.waiting / (2 * context.start_s * flow.work_per_s)
        for rate, flow in zip(state.rates, context.flows, strict=True)
        if flow.waiting > wanted * flow.work_per_s * context.start_s
    ]
    return _num_actors(max(needs, default=0.0))


def _has_backlog(context: ScalingContext, num_left: int) -> bool:
    """Whether more waits than the actors that would be left work off within half a start."""
    return any(2 * flow.waiting > num_left * flow.work_per_s * context.start_s for flow in context.flows)


def _correction(context: ScalingContext, elapsed_s: float) -> float:
    correction, settings = context.state.correction, context.settings
    if context.attainment is None:
        return correction
    if context.attainment < settings.attainment:
        # Only while the stage has what it wanted: what a missing actor would change is not known yet.
        if context.actors.starting:
            return correction
        return min(settings.correction_limit, correction * (1 + 0.1 * elapsed_s / _CORRECTION_GROWTH_S))
    return 1.0 + (correction - 1.0) * math.exp(-elapsed_s / _CORRECTION_DECAY_S)


def _num_actors(demand: float) -> int:
    """Rounded up; what is less than a hundredth of an actor is a rest of an average, and no work."""
    return 0 if demand < 0.01 else math.ceil(demand - _ROUNDING)


def _burst_s(context: ScalingContext) -> float:
    """How long load must last to be no burst: as long as a start, and what smoothing adds to a burst's end."""
    return context.start_s + context.settings.smoothing_s


def _has_seen(context: ScalingContext, state: ScalingState, seconds: float) -> bool:
    return state.began_s is not None and context.now_s - state.began_s >= seconds
