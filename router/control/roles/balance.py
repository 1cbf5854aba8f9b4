"""The policy balance: one actor at a time moves to the stage that holds the others up, when that pays for the move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from router.control.membership import StageName
from router.control.roles.role_context import Move, RoleContext, RoleState


def balance(context: RoleContext) -> tuple[tuple[Move, ...], RoleState]:
    """A request passes through all stages, so the stage that is shortest of actors says which part of the work is done.

    A move wins what is done more in the rest of the horizon once the actor is there, and loses what is done less while
    it is in neither stage. It is made when the sum of both was above the hysteresis for settle_s. Work that waits
    counts as spread over the horizon.
    """
    settings, state = context.settings, _observed(context)
    gains = {move: _gain(context, state, move) for move in context.move_s if _is_allowed(context, move)}
    best = max(gains, key=lambda move: gains[move], default=None)
    if best is None or gains[best] <= settings.hysteresis:
        return (), replace(state, pays_since_s=None)
    since_s = context.now_s if state.pays_since_s is None else state.pays_since_s
    is_settled = context.now_s - since_s >= settings.settle_s
    if not is_settled or context.now_s - state.moved_s < settings.cooldown_s:
        return (), replace(state, pays_since_s=since_s)
    return (best,), replace(state, pays_since_s=None, moved_s=context.now_s)


def _gain(context: RoleContext, state: RoleState, move: Move) -> float:
    """What a move wins, as a part of the work within the horizon."""
    counts = {stage: load.num_actors for stage, load in context.stages.items()}
    demands = _demands(context, state)
    away = {**counts, move.from_stage: counts[move.from_stage] - 1}
    after = {**away, move.to_stage: counts[move.to_stage] + 1}
    lost = min(1.0, context.move_s[move] / context.settings.horizon_s)
    done = lost * _part_done(away, demands) + (1.0 - lost) * _part_done(after, demands)
    return done - _part_done(counts, demands)


def _part_done(counts: Mapping[StageName, int], demands: Mapping[StageName, float]) -> float:
    return min((counts[stage] / demand for stage, demand in demands.items() if demand > counts[stage]), default=1.0)


def _demands(context: RoleContext, state: RoleState) -> dict[StageName, float]:
    """Actors that each stage needs to do its work within the horizon."""
    return {
        stage: state.steady[stage] + load.waiting_s / context.settings.horizon_s
        for stage, load in context.stages.items()
    }


def _is_allowed(context: RoleContext, move: Move) -> bool:
    """Only between stages that have actors: the policy makes no stages, and empties none."""
    from_stage, to_stage = context.stages.get(move.from_stage), context.stages.get(move.to_stage)
    if from_stage is None or to_stage is None or to_stage.num_actors < 1:
        return False
    is_left = from_stage.num_actors > max(1, from_stage.bounds.min_actors)
    return is_left and to_stage.num_actors < to_stage.bounds.max_actors


def _observed(context: RoleContext) -> RoleState:
    """The state with this moment's load in it."""
    before = context.state
    elapsed_s = math.inf if before.seen_s is None else max(0.0, context.now_s - before.seen_s)
    weight = 1.0 - math.exp(-elapsed_s / context.smoothing_s)
    steady = {}
    for stage, load in context.stages.items():
        old = before.steady.get(stage, load.steady)
        steady[stage] = old + weight * (load.steady - old)
    return replace(before, seen_s=context.now_s, steady=steady)
