"""The shift test: its requests, what counts as a move, and how two runs compare."""

from __future__ import annotations

import pytest

from benchmarks.role_shift.figures import figures, moves, ratios
from benchmarks.role_shift.trace import LONG, NUM_LONG, NUM_SHORT, SHORT, make_trace
from benchmarks.shift.run import Change, Run, Served
from router.control.membership import StageName

ENCODER, DECODE = StageName.ENCODER, StageName.DECODE


def test_short_answers_come_first_and_no_picture_twice() -> None:
    trace = make_trace(5.0, 1)
    assert trace == make_trace(5.0, 1)
    assert [one.phase for one in trace] == [SHORT] * NUM_SHORT + [LONG] * NUM_LONG
    assert {(one.phase, one.max_tokens) for one in trace} == {(SHORT, 50), (LONG, 500)}
    pictures = {part.image.data for one in trace for part in one.message.parts if part.HasField("image")}
    assert len(pictures) == len(trace)
    assert trace[-1].at_s == pytest.approx(20.0, rel=0.5)


def test_a_move_takes_from_one_stage_what_it_gives_to_another() -> None:
    away, there = Change(12.04, ENCODER, 2, 1), Change(12.04, DECODE, 1, 2)
    assert moves([away, there]) == [{"at_s": 12.0, "from": "encoder", "to": "decode"}]
    assert moves([away]) == [] and moves([away, Change(13.0, DECODE, 1, 2)]) == []


def test_ratios_say_how_many_times_as_much_without_the_policy() -> None:
    slow = figures(Run([Served(LONG, 0.0, 1.0, 0.2, 1, total_s=60.0), Served(SHORT, 0.0, error="Unavailable")]))
    fast = figures(Run([Served(LONG, 0.0, 2.0, 0.1, 2, total_s=20.0)]))
    assert (slow["num_failed"], fast["num_begun_again"]) == (1, 1)
    assert ratios(slow, fast)["latency_median_s"] == 3.0
    assert ratios(slow, fast)["tpot_mean_ms"] == 2.0 and ratios(slow, fast)["ttft_median_s"] == 0.5
