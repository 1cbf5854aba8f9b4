"""The pure part of the controller: what follows from wanted and running actors, and which wishes are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.control.membership import StageName
from router.control.plan import ActorView, Discard, Drain, Launch, Phase, check_move, check_scale, plan, wanted_actors
from triptych.config import DeploymentConfig, Mode
from triptych.errors import InvalidRequest

ENCODER, PREFILL, DECODE, BOTH = StageName.ENCODER, StageName.PREFILL, StageName.DECODE, StageName.PREFILL_DECODE


def actor(number: int, phase: Phase = Phase.READY, load: int = 0, stage: StageName = ENCODER) -> ActorView:
    return ActorView(number, stage, phase, load)


def test_nothing_to_do() -> None:
    assert plan({ENCODER: 2, DECODE: 0}, [actor(1), actor(2)]) == []


def test_missing_actors_are_launched_per_stage() -> None:
    actions = plan({ENCODER: 2, DECODE: 1}, [actor(1)])
    assert actions == [Launch(ENCODER), Launch(DECODE)]


def test_starting_actors_count_as_there() -> None:
    assert plan({ENCODER: 2}, [actor(1), actor(2, Phase.STARTING)]) == []


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.ENDED])
def test_actors_that_go_do_not_count(phase: Phase) -> None:
    assert plan({ENCODER: 1}, [actor(1, phase)]) == [Launch(ENCODER)]


def test_lost_actor_is_discarded_and_replaced_in_one_round() -> None:
    assert plan({ENCODER: 1}, [actor(1, Phase.LOST)]) == [Discard(1), Launch(ENCODER)]


def test_resting_stage_gets_no_new_actor_but_still_loses_surplus() -> None:
    assert plan({ENCODER: 3}, [actor(1)], resting=[ENCODER]) == []
    assert plan({ENCODER: 1}, [actor(1), actor(2)], resting=[ENCODER]) == [Drain(2)]


@pytest.mark.parametrize(
    ("actors", "drained"),
    [
        ([actor(1), actor(2), actor(3)], {3}),  # The newest.
        ([actor(1), actor(2, load=4), actor(3, load=1)], {1}),  # The idle one.
        ([actor(1), actor(2), actor(3, Phase.STARTING)], {3}),  # One that never had work.
        ([actor(1, load=0), actor(2, Phase.STARTING), actor(3, load=9)], {2}),
    ],
)
def test_which_actor_is_taken_away(actors: list[ActorView], drained: set[int]) -> None:
    assert {action.number for action in plan({ENCODER: 2}, actors) if isinstance(action, Drain)} == drained


@given(
    wanted=st.dictionaries(st.sampled_from(StageName), st.integers(0, 6), min_size=1),
    parts=st.lists(st.tuples(st.sampled_from(StageName), st.sampled_from(Phase), st.integers(0, 9)), max_size=20),
)
def test_after_the_actions_every_stage_has_what_it_should(
    wanted: dict[StageName, int], parts: list[tuple[StageName, Phase, int]]
) -> None:
    actors = [ActorView(number, stage, phase, load) for number, (stage, phase, load) in enumerate(parts)]
    actions = plan(wanted, actors)
    drained = {action.number for action in actions if isinstance(action, Drain)}
    present = {view.number for view in actors if view.phase in (Phase.STARTING, Phase.READY, Phase.MOVING)}
    assert drained <= present
    for stage, count in wanted.items():
        kept = [view for view in actors if view.stage is stage and view.number in present - drained]
        assert len(kept) + actions.count(Launch(stage)) == count
        if drained & {view.number for view in actors if view.stage is stage}:
            assert Launch(stage) not in actions


def test_wanted_actors_come_from_the_configuration() -> None:
    config = DeploymentConfig.from_sources(overrides={"stages": {"decode": {"replicas": 3}}}, environment={})
    assert wanted_actors(config) == {ENCODER: 1, PREFILL: 1, DECODE: 3, BOTH: 0}


SPLIT = {ENCODER: 1, PREFILL: 1, DECODE: 1, BOTH: 0}
ONE = {ENCODER: 0, PREFILL: 0, DECODE: 0, BOTH: 1}


@pytest.mark.parametrize(
    ("mode", "wanted", "stage", "count", "words"),
    [
        (Mode.DISAGGREGATED, SPLIT, ENCODER, 0, "expected at least 1"),
        (Mode.DISAGGREGATED, SPLIT, PREFILL, 0, "at least one prefill and one decode"),
        (Mode.DISAGGREGATED, SPLIT, DECODE, 0, "at least one prefill and one decode"),
        (Mode.DISAGGREGATED, {**ONE, ENCODER: 1}, BOTH, 0, "at least one prefill and one decode"),
        (Mode.COLOCATED, ONE, ENCODER, 1, "colocated"),
        (Mode.COLOCATED, ONE, DECODE, 2, "colocated"),
        (Mode.COLOCATED, ONE, BOTH, 0, "at least 1 in mode colocated"),
    ],
)
def test_wishes_that_leave_nobody_to_answer_are_refused(
    mode: Mode, wanted: dict[StageName, int], stage: StageName, count: int, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_scale(mode, wanted, stage, count)


@pytest.mark.parametrize(
    ("mode", "wanted", "stage", "count"),
    [
        (Mode.DISAGGREGATED, SPLIT, ENCODER, 5),
        (Mode.DISAGGREGATED, SPLIT, BOTH, 1),
        (Mode.DISAGGREGATED, {**SPLIT, BOTH: 1}, PREFILL, 0),
        (Mode.DISAGGREGATED, {**SPLIT, BOTH: 1}, DECODE, 0),
        (Mode.DISAGGREGATED, {**SPLIT, BOTH: 1}, BOTH, 0),
        (Mode.COLOCATED, ONE, BOTH, 4),
        (Mode.COLOCATED, ONE, ENCODER, 0),
    ],
)
def test_other_wishes_are_taken(mode: Mode, wanted: dict[StageName, int], stage: StageName, count: int) -> None:
    check_scale(mode, wanted, stage, count)


def test_who_moves_counts_in_its_new_stage_and_is_kept_there() -> None:
    moving = actor(9, Phase.MOVING)
    assert plan({ENCODER: 2}, [actor(1), moving]) == []
    assert plan({ENCODER: 1}, [actor(1, load=5), moving]) == [Drain(1)]


def test_moves_that_leave_nobody_to_answer_are_refused() -> None:
    wanted = {ENCODER: 1, StageName.PREFILL: 1, StageName.DECODE: 2, StageName.PREFILL_DECODE: 0}
    check_move(Mode.DISAGGREGATED, wanted, StageName.DECODE, StageName.PREFILL)
    check_move(Mode.DISAGGREGATED, wanted, StageName.PREFILL, StageName.PREFILL_DECODE)
    for mode, from_stage, to_stage in (
        (Mode.DISAGGREGATED, ENCODER, StageName.PREFILL),
        (Mode.DISAGGREGATED, StageName.PREFILL, StageName.DECODE),
        (Mode.DISAGGREGATED, StageName.PREFILL_DECODE, StageName.DECODE),
        (Mode.DISAGGREGATED, StageName.DECODE, StageName.DECODE),
        (Mode.COLOCATED, StageName.PREFILL_DECODE, StageName.DECODE),
    ):
        with pytest.raises(InvalidRequest):
            check_move(mode, wanted, from_stage, to_stage)
