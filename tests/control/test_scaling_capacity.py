"""What the policy is fed with: measured capacity, and who made which answer late."""

from __future__ import annotations

import pytest

from router.control.membership import StageName
from router.control.scaling.attainment import FEWEST_ANSWERS, WINDOW_S, AnswerTimes, Attainment, late_stages
from router.control.scaling.capacity import CapacityMeter
from triptych.config.scaling import ScalingSection

SETTINGS = ScalingSection(ttft_s=1.0, ttft_per_prompt_token_s=0.001, tpot_s=0.1)


def test_what_busy_actors_do_outweighs_what_was_believed() -> None:
    meter = CapacityMeter(1_000.0)
    for second in range(21):
        meter.note("a", float(second), done=300 * second, pending=5_000)
    assert meter.work_per_s == pytest.approx(300.0, rel=0.05)
    for second in range(21, 42):
        meter.note("a", float(second), done=300 * 20 + 500 * (second - 20), pending=5_000)
    assert meter.work_per_s == pytest.approx(500.0, rel=0.05)


def test_a_batch_that_ends_in_a_span_was_not_done_in_it() -> None:
    meter = CapacityMeter(300.0)
    # Batches of 900 take three seconds; the counter moves when one of them ends.
    for second in range(31):
        meter.note("a", float(second), done=900 * (second // 3), pending=5_000)
        assert meter.work_per_s == pytest.approx(300.0)


def test_of_an_idle_span_only_what_came_in_it_counts() -> None:
    meter = CapacityMeter(1_000.0)
    meter.note("a", 0.0, done=0, pending=1_400)
    meter.note("a", 1.0, done=1_600, pending=0)
    assert meter.work_per_s == 1_000.0, "1,400 of them may have been nearly done before"


def test_of_an_idle_span_only_the_least_is_known() -> None:
    meter = CapacityMeter(1_000.0)
    meter.note("a", 0.0, done=0, pending=0)
    meter.note("a", 1.0, done=100, pending=0)
    assert meter.work_per_s == 1_000.0
    meter.note("a", 2.0, done=1_600, pending=0)
    assert meter.work_per_s == 1_500.0


def test_a_restarted_actor_is_another_one() -> None:
    meter = CapacityMeter(1_000.0)
    meter.note("a", 0.0, done=10**9, pending=10**9)
    meter.retain({"b"})
    meter.note("a", 1.0, done=2 * 10**9, pending=0)
    assert meter.work_per_s == 1_000.0


@pytest.mark.parametrize(
    ("answer", "stages"),
    [
        (AnswerTimes(500, 1.4, 0.05), ()),
        (AnswerTimes(500, 1.6, 0.05, encode_s=1.0, prefill_s=0.5), (StageName.ENCODER,)),
        (AnswerTimes(500, 1.6, 0.05, encode_s=0.1, prefill_s=1.4), (StageName.PREFILL,)),
        (AnswerTimes(500, 1.6, 0.2, prefill_s=1.4, is_split=False), (StageName.PREFILL_DECODE,) * 2),
        (AnswerTimes(500, 0.2, 0.2), (StageName.DECODE,)),
        (AnswerTimes(500, 0.2, None), ()),
    ],
)
def test_who_made_an_answer_late(answer: AnswerTimes, stages: tuple[StageName, ...]) -> None:
    assert late_stages(answer, SETTINGS) == stages


def test_the_share_is_of_the_last_minute_and_of_enough_answers() -> None:
    attainment = Attainment(SETTINGS)
    for _ in range(FEWEST_ANSWERS - 1):
        attainment.note(0.0, AnswerTimes(100, 0.5, 0.2))
    assert attainment.of(StageName.DECODE, 1.0) is None
    attainment.note(1.0, AnswerTimes(100, 0.5, 0.05))
    assert attainment.of(StageName.DECODE, 1.0) == pytest.approx(1 / FEWEST_ANSWERS)
    assert attainment.of(StageName.PREFILL, 1.0) == 1.0
    assert attainment.of(StageName.DECODE, WINDOW_S + 2.0) is None
