"""The generated day against the numbers that the Azure LMM trace and ModServe publish; the plan made in hindsight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import mean

import pytest

from benchmarks.scaling import trace
from benchmarks.scaling.oracle import INTERVAL_S, NUM_INTERVALS, cheapest, fewest_actor_seconds
from benchmarks.scaling.rates import ActorRates
from benchmarks.scaling.simulation import DECODE, ENCODER, PREFILL, STAGES, Allocation, Outcome, Simulation
from triptych.config.scaling import ScalingSection


@pytest.fixture(scope="module")
def weekday() -> list[trace.Arrival]:
    return trace.azure_like_day(7, has_episode=False)


def test_a_weekday_has_the_published_rates_and_bursts(weekday: list[trace.Arrival]) -> None:
    pictures = Counter(int(arrival.at_s // 60) for arrival in weekday if arrival.num_patches)
    text = Counter(int(arrival.at_s // 60) for arrival in weekday if not arrival.num_patches)
    # A weekday has 1.21 times the mean day's requests: 57.4 a minute with pictures, 55.5 but for the episodes'.
    assert mean(pictures[minute] for minute in range(1_440)) == pytest.approx(55.5, rel=0.08)
    assert mean(text[minute] for minute in range(1_440)) == pytest.approx(62.3, rel=0.03)
    edge = mean(max(pictures[minute] for minute in range(begin, begin + 15)) for begin in range(0, 1_440, 15))
    # 125 over a week, of which weekends have 0.4: 143 on weekdays.
    assert edge == pytest.approx(143, rel=0.12)
    assert 120 <= max(text.values()) <= 190


def test_an_episode_brings_requests_with_many_pictures_for_hours() -> None:
    begin, end = trace.episode_of(7, has_episode=True)
    assert 3_600 <= end - begin <= 3 * 3_600
    day = trace.azure_like_day(7, has_episode=True)
    within = [arrival for arrival in day if begin <= arrival.at_s < end]
    text = sum(arrival.prompt_tokens for arrival in within if not arrival.num_patches)
    pictures = sum(arrival.prompt_tokens for arrival in within if arrival.num_patches)
    many = [arrival for arrival in within if arrival.num_patches and arrival.prompt_tokens > 14_000]
    assert 60 * len(many) / (end - begin) == pytest.approx(trace.EPISODE_PER_S * 60, rel=0.2)
    assert pictures > 5 * text


def test_half_of_the_longest_prompts_lie_outside_episodes(weekday: list[trace.Arrival]) -> None:
    prompts = sorted(arrival.prompt_tokens for arrival in weekday if arrival.num_patches)
    longest = math.exp(math.log(9_515) + 0.033 / 0.05 * math.log(21_100 / 9_515))  # the quantile at 1 - TAIL
    assert sum(tokens > longest for tokens in prompts) / len(prompts) == pytest.approx(trace.TAIL / 2, rel=0.1)
    assert prompts[len(prompts) // 2] == pytest.approx(1_408, rel=0.06)


def test_the_oracle_takes_actors_away_where_it_makes_fewest_late() -> None:
    late = [[50, 10, 0], [2, 0, 0], [2, 0, 0], [900, 0, 0]]
    assert cheapest(late, 0) == [3, 2, 2, 2]
    assert cheapest(late, 3) == [3, 1, 2, 2]
    assert cheapest(late, 14) == [2, 1, 1, 2]
    assert cheapest(late, 2_000) == [1, 1, 1, 1]


def test_the_oracle_needs_no_more_than_a_fixed_count_with_as_many_late(weekday: list[trace.Arrival]) -> None:
    settings, rates = ScalingSection(ttft_s=6.0, tpot_s=0.2), ActorRates(1 / 24)

    def simulate(part: Sequence[trace.Arrival], counts: Allocation) -> Outcome:
        return Simulation(settings, rates, counts).run(part)

    morning = [arrival for arrival in weekday if arrival.at_s < 3_600]
    fixed = {ENCODER: 3, PREFILL: 8, DECODE: 2}
    num_late = simulate(morning, fixed).num_late
    seconds = fewest_actor_seconds(simulate, morning, fixed, fixed, num_late)
    hours = {stage: round(4 * INTERVAL_S + (NUM_INTERVALS - 4) * INTERVAL_S) for stage in STAGES}
    for stage in STAGES:
        # The rest of the day is empty: one actor is the fewest.
        assert hours[stage] <= seconds[stage] <= hours[stage] + 4 * INTERVAL_S * (fixed[stage] - 1)
