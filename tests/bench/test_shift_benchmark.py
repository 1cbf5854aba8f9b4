"""The benchmark of a shifting load: its trace, and what counts as a flap, in time, and ready."""

from __future__ import annotations

from benchmarks.shift.figures import figures, flaps
from benchmarks.shift.run import Change, Run, Served, _with_ready
from benchmarks.shift.trace import Phase, make_trace, phases
from router.control.membership import StageName
from triptych.config.scaling import ScalingSection

SETTINGS = ScalingSection(ttft_s=1.0, tpot_s=0.05, down_cooldown_s=8.0)
ENCODER, DECODE = StageName.ENCODER, StageName.DECODE


def test_the_same_seed_makes_the_same_requests_in_order() -> None:
    shift = [Phase("text", 5.0, 4.0, num_words=20), Phase("pictures", 2.0, 2.0, num_pictures=2)]
    trace = make_trace(shift, 1)
    assert trace == make_trace(shift, 1) != make_trace(shift, 2)
    times = [request.at_s for request in trace]
    assert times == sorted(times) and all((one.at_s >= 5.0) == (one.phase == "pictures") for one in trace)
    pictures = [part.image.data for one in trace for part in one.message.parts if part.HasField("image")]
    assert len(set(pictures)) == len(pictures) > 0


def test_a_change_that_is_soon_taken_back_is_a_flap() -> None:
    up, down = Change(10.0, ENCODER, 1, 3), Change(17.0, ENCODER, 3, 2)
    assert flaps([up, down], SETTINGS) == [down]
    assert flaps([up, Change(19.0, ENCODER, 3, 2)], SETTINGS) == []
    assert flaps([up, Change(12.0, DECODE, 3, 2)], SETTINGS) == [], "another stage"
    assert flaps([up, Change(12.0, ENCODER, 3, 4)], SETTINGS) == [], "the same direction"


def test_growth_is_ready_when_the_actors_are_there() -> None:
    change = Change(10.0, ENCODER, 1, 3)
    assert _with_ready(change, ENCODER, 2, 12.0) is change and _with_ready(change, DECODE, 3, 12.0) is change
    assert _with_ready(change, ENCODER, 3, 12.0).ready_s == 12.0


def test_a_late_or_failed_answer_is_not_in_time() -> None:
    served = [
        Served("text", 0.0, 0.9, 0.04, 1),
        Served("text", 0.0, 1.1, 0.04, 1),
        Served("text", 0.0, 0.9, 0.06, 2),
        Served("text", 0.0, error="Overloaded"),
    ]
    row = figures(Run(served), SETTINGS)
    assert (row["attained"], row["num_failed"], row["num_begun_again"]) == (0.25, 1, 1)


def test_a_phase_rises_holds_and_falls() -> None:
    phase = Phase("text", 20.0, 30.0, num_words=1, up_s=10.0, down_s=5.0)
    assert [phase.part_at(second) for second in (0.0, 5.0, 10.0, 15.0, 17.5, 20.0)] == [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    times = [request.at_s for request in make_trace([phase], 3)]
    early = sum(at_s < 5.0 for at_s in times)
    held = sum(10.0 <= at_s < 15.0 for at_s in times)
    # 37.5 and 150 are expected.
    assert 0 < early < held / 2


def test_the_height_is_what_was_asked_for() -> None:
    heights = {"text": 4.0, "pictures": 3.0, "long answers": 2.0, "rest": 0.5}
    shift = phases(heights, scale=0.5)
    assert {phase.name: phase.requests_per_s for phase in shift} == heights
    assert all(phase.up_s + phase.down_s < phase.seconds for phase in shift)
