"""The role policy balance in virtual time: it follows the mix, pays for its moves, and does not go to and fro."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.control.membership import StageName
from router.control.roles import role_policy
from router.control.roles.role_context import Move, RoleContext, RoleState, StageLoad
from router.control.scaling.context import Bounds
from triptych.config.roles import RolesSection
from triptych.errors import ConfigurationError

ENCODER, PREFILL, DECODE, BOTH = StageName
SPLIT = (ENCODER, PREFILL, DECODE)
ALL_MOVES = {
    Move(one, other): 2.0 if ENCODER in (one, other) else 0.05 for one in SPLIT for other in SPLIT if one != other
}


@dataclass
class Cluster:
    """Three stages in virtual time, steps of a second. What a stage does not get done waits. An actor that moves is in
    neither stage meanwhile. done_s: the actor-seconds of work that its bottleneck let through."""

    counts: dict[StageName, int]
    policy: str = "balance"
    settings: RolesSection = field(default_factory=RolesSection)
    move_s: Mapping[Move, float] = field(default_factory=lambda: dict(ALL_MOVES))
    smoothing_s: float = 5.0
    now_s: float = 0.0
    moves: list[tuple[float, Move]] = field(default_factory=list)
    waiting: dict[StageName, float] = field(default_factory=lambda: dict.fromkeys(SPLIT, 0.0))
    state: RoleState = field(default_factory=RoleState)
    num_waited: float = 0.0
    _arrives: list[tuple[float, StageName]] = field(default_factory=list)

    def run(self, seconds: int, demand: Callable[[float], Mapping[StageName, float]]) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            for at_s, stage in [arrival for arrival in self._arrives if arrival[0] <= self.now_s]:
                self._arrives.remove((at_s, stage))
                self.counts[stage] += 1
            wanted = demand(self.now_s)
            for stage in SPLIT:
                self.waiting[stage] = max(0.0, self.waiting[stage] + wanted[stage] - self.counts[stage])
            self.num_waited += sum(self.waiting.values())
            self._decide(wanted)

    def _decide(self, wanted: Mapping[StageName, float]) -> None:
        if self._arrives:
            return
        stages = {stage: StageLoad(self.counts[stage], wanted[stage], self.waiting[stage]) for stage in SPLIT}
        context = RoleContext(self.now_s, stages, self.move_s, self.smoothing_s, self.settings, self.state)
        moves, self.state = role_policy(self.policy)(context)
        for move in moves:
            self.moves.append((self.now_s, move))
            self.counts[move.from_stage] -= 1
            self._arrives.append((self.now_s + self.move_s[move], move.to_stage))


def shifting(now_s: float) -> Mapping[StageName, float]:
    """Text, then pictures, then long answers: eight actors' work at the peak of each."""
    if now_s < 300:
        return {ENCODER: 0.5, PREFILL: 3.5, DECODE: 2.0}
    if now_s < 600:
        return {ENCODER: 4.5, PREFILL: 2.0, DECODE: 0.8}
    return {ENCODER: 0.5, PREFILL: 0.9, DECODE: 5.5}


def test_actors_follow_the_mix_and_what_waits_is_a_fraction_of_the_static_splits() -> None:
    clusters = {name: Cluster({ENCODER: 3, PREFILL: 2, DECODE: 3}, policy=name) for name in ("fixed", "balance")}
    for cluster in clusters.values():
        cluster.run(900, shifting)
    moving = clusters["balance"]
    assert moving.counts == {ENCODER: 1, PREFILL: 1, DECODE: 6}
    assert moving.num_waited < clusters["fixed"].num_waited / 4
    assert len(moving.moves) <= 12 and not clusters["fixed"].moves
    assert all(second[0] - first[0] >= 10.0 for first, second in zip(moving.moves, moving.moves[1:], strict=False))


def test_with_room_everywhere_nobody_moves() -> None:
    cluster = Cluster({ENCODER: 2, PREFILL: 3, DECODE: 3})
    cluster.run(300, lambda now_s: {ENCODER: 0.1, PREFILL: 2.9, DECODE: 1.0})
    assert cluster.moves == []


def test_where_all_are_short_nobody_moves_to_and_fro() -> None:
    cluster = Cluster({ENCODER: 2, PREFILL: 2, DECODE: 2})
    cluster.run(600, lambda now_s: dict.fromkeys(SPLIT, 3.0))
    assert cluster.moves == []


def test_a_move_that_costs_more_than_it_wins_is_not_made() -> None:
    def demand(now_s: float) -> Mapping[StageName, float]:
        return {ENCODER: 1.0, PREFILL: 1.0, DECODE: 2.3}

    for seconds, is_made in ((0.05, True), (29.0, False)):
        cluster = Cluster({ENCODER: 1, PREFILL: 3, DECODE: 2}, move_s={Move(PREFILL, DECODE): seconds})
        cluster.run(60, demand)
        assert bool(cluster.moves) is is_made, seconds


def test_short_bursts_and_quick_waves_move_nobody() -> None:
    def waves(now_s: float) -> Mapping[StageName, float]:
        is_high = now_s % 4 < 2
        return {ENCODER: 0.5, PREFILL: 2.4 if is_high else 1.2, DECODE: 1.2 if is_high else 2.4}

    cluster = Cluster({ENCODER: 1, PREFILL: 2, DECODE: 2})
    cluster.run(300, waves)
    assert cluster.moves == []


def test_slow_waves_move_once_a_wave_at_most() -> None:
    def waves(now_s: float) -> Mapping[StageName, float]:
        is_high = now_s % 240 < 120
        return {ENCODER: 0.5, PREFILL: 2.8 if is_high else 0.8, DECODE: 0.8 if is_high else 2.8}

    cluster = Cluster({ENCODER: 1, PREFILL: 2, DECODE: 2})
    cluster.run(1_200, waves)
    assert 2 <= len(cluster.moves) <= 2 * 10


def _context(counts: Mapping[StageName, int], demands: Mapping[StageName, float], **changes: object) -> RoleContext:
    values: dict[str, object] = {
        "now_s": 100.0,
        "stages": {stage: StageLoad(counts[stage], demands[stage]) for stage in counts},
        "move_s": ALL_MOVES,
        "smoothing_s": 5.0,
        "settings": RolesSection(settle_s=0.0, cooldown_s=0.0),
    }
    return RoleContext(**(values | changes))  # type: ignore[arg-type]


@given(
    counts=st.tuples(*[st.integers(0, 6)] * 3),
    demands=st.tuples(*[st.floats(0, 12)] * 3),
)
def test_no_move_is_taken_back_while_the_load_stays(counts: tuple[int, ...], demands: tuple[float, ...]) -> None:
    numbers, load = dict(zip(SPLIT, counts, strict=True)), dict(zip(SPLIT, demands, strict=True))
    policy, moved = role_policy("balance"), []
    for _ in range(12):
        moves, _state = policy(_context(numbers, load))
        if not moves:
            break
        (move,) = moves
        assert numbers[move.from_stage] >= 2 and numbers[move.to_stage] >= 1
        assert Move(move.to_stage, move.from_stage) not in moved
        moved.append(move)
        numbers[move.from_stage] -= 1
        numbers[move.to_stage] += 1
    else:
        raise AssertionError(moved)


def test_bounds_and_impossible_moves() -> None:
    counts, demands = {ENCODER: 1, PREFILL: 3, DECODE: 1}, {ENCODER: 0.1, PREFILL: 0.5, DECODE: 4.0}
    policy = role_policy("balance")
    assert policy(_context(counts, demands))[0] == (Move(PREFILL, DECODE),)
    assert policy(_context(counts, demands, move_s={Move(ENCODER, DECODE): 1.0}))[0] == ()
    for stage, bounds in ((PREFILL, Bounds(3, 9)), (DECODE, Bounds(1, 1))):
        stages = {name: StageLoad(counts[name], demands[name]) for name in counts}
        stages[stage] = StageLoad(counts[stage], demands[stage], bounds=bounds)
        assert policy(_context(counts, demands, stages=stages))[0] == ()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="fixed, balance"):
        role_policy("guess")
