"""Between how many actors a stage may have by itself."""

from __future__ import annotations

from router.control.membership import StageName
from router.control.scaling.context import Bounds
from triptych.config import DeploymentConfig, Mode


def stage_bounds(config: DeploymentConfig, stage: StageName) -> Bounds:
    """What is not set is the stage's replicas; in mode colocated only prefill_decode has any."""
    replicas = getattr(config.stages, stage).replicas
    section = getattr(config.scaling, stage)
    if config.mode is Mode.COLOCATED and stage is not StageName.PREFILL_DECODE:
        return Bounds(0, 0)
    low = replicas if section.min_actors is None else section.min_actors
    high = replicas if section.max_actors is None else section.max_actors
    return Bounds(min(low, high), max(low, high))


def scaled_stages(config: DeploymentConfig) -> dict[StageName, Bounds]:
    """The stages that a policy may change, with their bounds."""
    bounds = {stage: stage_bounds(config, stage) for stage in StageName}
    return {stage: bound for stage, bound in bounds.items() if bound.min_actors < bound.max_actors}
