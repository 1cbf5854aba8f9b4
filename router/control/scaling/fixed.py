"""The policy fixed: what is wanted stays wanted."""

from __future__ import annotations

from dataclasses import replace

from router.control.scaling.context import Reason, ScalingContext, ScalingState


def fixed(context: ScalingContext) -> tuple[int, ScalingState]:
    """The wanted count, within the bounds."""
    target = context.bounds.clamp(context.actors.wanted)
    reason = Reason.STEADY if target == context.actors.wanted else Reason.BOUNDS
    return target, replace(context.state, reason=reason)
