"""What to do about the difference between the actors wanted and the actors there are. Plain functions, no state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from router.control.membership import StageName
from triptych.config import DeploymentConfig, Mode
from triptych.errors import InvalidRequest


class Phase(Enum):
    """Where an actor is in its life."""

    STARTING = auto()
    READY = auto()
    # Changes to another stage, and counts as one of that already.
    MOVING = auto()
    # Finishes its work, then ends.
    DRAINING = auto()
    # Did not answer, or died: its process is to be ended and another one takes its place.
    LOST = auto()
    # Nothing of it is left.
    ENDED = auto()


_PRESENT = (Phase.STARTING, Phase.READY, Phase.MOVING)


@dataclass(frozen=True)
class ActorView:
    """What `plan` looks at. `number` grows with every launch; `load` is in any unit that compares within a stage."""

    number: int
    stage: StageName
    phase: Phase
    load: int = 0


@dataclass(frozen=True)
class Launch:
    stage: StageName


@dataclass(frozen=True)
class Drain:
    number: int


@dataclass(frozen=True)
class Discard:
    """End a lost actor's process for good."""

    number: int


Action = Launch | Drain | Discard


def plan(
    wanted: Mapping[StageName, int], actors: Sequence[ActorView], resting: Collection[StageName] = ()
) -> list[Action]:
    """The actions that bring `actors` to the `wanted` count of each stage; none when there is nothing to do.

    Actors that start count as there. Stages in `resting` get no new actor now: their last start failed a moment ago.
    """
    actions: list[Action] = [Discard(actor.number) for actor in actors if actor.phase is Phase.LOST]
    for stage, count in wanted.items():
        present = [actor for actor in actors if actor.stage is stage and actor.phase in _PRESENT]
        if len(present) > count:
            actions += [Drain(actor.number) for actor in sorted(present, key=_to_keep)[count:]]
        elif stage not in resting:
            actions += [Launch(stage)] * (count - len(present))
    return actions


def wanted_actors(config: DeploymentConfig) -> dict[StageName, int]:
    """The counts that the configuration asks for."""
    return {stage: getattr(config.stages, stage).replicas for stage in StageName}


def check_scale(mode: Mode, wanted: Mapping[StageName, int], stage: StageName, num_actors: int) -> None:
    """Raises InvalidRequest when with `num_actors` in `stage` no request could be answered any more."""
    after = {**wanted, stage: num_actors}
    if mode is Mode.COLOCATED:
        if stage is not StageName.PREFILL_DECODE and num_actors > 0:
            raise InvalidRequest(
                f"mode is colocated, where every actor encodes, prefills and decodes: stage {stage} has no actors; "
                f"scale {StageName.PREFILL_DECODE}, or deploy with mode: disaggregated",
                field="stage",
            )
        if after[StageName.PREFILL_DECODE] < 1:
            raise InvalidRequest(
                f"{stage}={num_actors}: expected at least 1 in mode colocated",
                field="num_actors",
            )
        return
    if mode is Mode.DISAGGREGATED and after[StageName.ENCODER] < 1:
        raise InvalidRequest(
            f"{stage}={num_actors}: expected at least 1, in mode disaggregated nobody else can take a picture",
            field="num_actors",
        )
    is_split = after[StageName.PREFILL] >= 1 and after[StageName.DECODE] >= 1
    if not is_split and after[StageName.PREFILL_DECODE] < 1:
        raise InvalidRequest(
            f"{stage}={num_actors}: then no request could be answered; needed are at least one prefill and one decode "
            "actor, or one prefill_decode actor (scale that up first)",
            field="num_actors",
        )


def check_move(mode: Mode, wanted: Mapping[StageName, int], from_stage: StageName, to_stage: StageName) -> None:
    """Raises InvalidRequest when with an actor of `from_stage` in `to_stage` no request could be answered any more."""
    if from_stage is to_stage or wanted[from_stage] < 1:
        raise InvalidRequest(
            f"an actor of {from_stage} was to move to {to_stage}: expected two stages, and an actor in the first",
            field="from_stage",
        )
    check_scale(mode, {**wanted, to_stage: wanted[to_stage] + 1}, from_stage, wanted[from_stage] - 1)
    if mode is Mode.COLOCATED:
        raise InvalidRequest("mode is colocated, which has one stage: there is none to move to", field="to_stage")


def _to_keep(actor: ActorView) -> tuple[bool, bool, int, int]:
    """Sort key: who just came here first, ready before starting, busy before idle, old before new. The surplus is cut
    off the end."""
    return actor.phase is not Phase.MOVING, actor.phase is Phase.STARTING, -actor.load, actor.number
