"""The policy queue_only: what most autoscalers do. It looks at what waits and is held now, and at nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

from router.control.scaling.context import Reason, ScalingContext, ScalingState


def queue_only(context: ScalingContext) -> tuple[int, ScalingState]:
    """One actor more while a second's work of all actors waits or they are full, one fewer when little is in hand.

    Knows neither arrivals nor answers' times: here to be compared with.
    """
    state, settings, wanted = context.state, context.settings, context.actors.wanted
    queued = [flow.waiting / flow.work_per_s for flow in context.flows]
    held = [holding.held / holding.capacity / settings.target_utilization for holding in context.holdings]
    busy = max([*queued, *held], default=0.0)
    target, reason = wanted, Reason.STEADY
    if busy > wanted and context.now_s - state.grew_s >= settings.up_cooldown_s:
        target, reason = wanted + 1, Reason.BACKLOG
    elif (
        wanted > 1
        and busy < (wanted - 1) * (1 - settings.hysteresis) * 0.5
        and context.now_s - max(state.grew_s, state.shrank_s) >= settings.down_cooldown_s
    ):
        target, reason = max(math.ceil(busy), wanted - 1), Reason.IDLE
    target = context.bounds.clamp(target)
    if target > wanted:
        state = replace(state, grew_s=context.now_s)
    elif target < wanted:
        state = replace(state, shrank_s=context.now_s)
    return target, replace(state, reason=reason if target != wanted else Reason.STEADY)
