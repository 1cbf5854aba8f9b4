"""Turns on paper: fairness by cost, cheap kinds first, nobody starves. In virtual time."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.admission.fair_order import Capacity, CostClass, FairTags, Waiting, next_turn
from router.dispatch.loads import NO_LOAD, Load

CAPACITY = Capacity(num_patches=1_000, num_prompt_tokens=1_000, num_kv_tokens=10_000)
AGEING_S = 2.0
TEXT, PICTURE, VIDEO = CostClass


def waiting(cost_class: CostClass = TEXT, arrived_s: float = 0.0, tag: float = 0.0, **load: int) -> Waiting:
    return Waiting(Load(**(load or {"num_prompt_tokens": 10})), cost_class, arrived_s, tag)


@pytest.mark.parametrize(
    ("own", "taken", "fits"),
    [(400, 600, True), (401, 600, False), (5_000, 0, True), (5_000, 1, False), (0, 1_000, True)],
)
def test_what_fits(own: int, taken: int, fits: bool) -> None:
    assert CAPACITY.fits(Load(num_patches=own), Load(num_patches=taken)) is fits


def test_a_stage_without_actors_bounds_nothing() -> None:
    assert Capacity(0, 0, 0).fits(Load(num_patches=10**9), Load(num_patches=10**9))


def test_text_goes_before_pictures_and_pictures_before_videos() -> None:
    line = [waiting(kind) for kind in (VIDEO, PICTURE, TEXT)]
    order = []
    while line:
        chosen = next_turn(line, NO_LOAD, CAPACITY, 1.0, AGEING_S)
        assert chosen is not None
        line.remove(chosen)
        order.append(chosen.cost_class)
    assert order == [TEXT, PICTURE, VIDEO]


def test_a_video_that_waited_counts_as_text() -> None:
    video, text = waiting(VIDEO, arrived_s=0.0, tag=1.0), waiting(TEXT, arrived_s=3.9, tag=2.0)
    assert next_turn([text, video], NO_LOAD, CAPACITY, 3.9, AGEING_S) is text
    assert next_turn([text, video], NO_LOAD, CAPACITY, 4.0, AGEING_S) is video


def test_a_stage_that_is_full_does_not_hold_up_requests_of_another() -> None:
    picture, text = waiting(PICTURE, num_patches=500), waiting(TEXT, tag=9.0)
    assert next_turn([picture, text], Load(num_patches=600), CAPACITY, 0.0, AGEING_S) is text


def test_a_large_one_is_overtaken_only_for_a_time() -> None:
    large, small = waiting(PICTURE, num_patches=900), waiting(PICTURE, arrived_s=3.0, tag=9.0, num_patches=10)
    in_flight = Load(num_patches=500)
    assert next_turn([small, large], in_flight, CAPACITY, 3.9, AGEING_S) is small
    assert next_turn([small, large], in_flight, CAPACITY, 4.0, AGEING_S) is None
    assert next_turn([small, large], NO_LOAD, CAPACITY, 4.0, AGEING_S) is large


def served_shares(demands: dict[str, tuple[int, int]], capacity_tokens: int, num_turns: int) -> Counter[str]:
    """Prompt tokens served by tenant, who always have as many requests of their size in line as they say."""
    capacity, tags, served = Capacity(0, capacity_tokens, 0), FairTags(), Counter[str]()
    line: dict[Waiting, str] = {}

    def arrive(tenant: str) -> None:
        load = Load(num_prompt_tokens=demands[tenant][0])
        line[Waiting(load, TEXT, 0.0, tags.tag(tenant, capacity.share_of(load)))] = tenant

    for tenant, (_, count) in demands.items():
        for _ in range(count):
            arrive(tenant)
    for _ in range(num_turns):
        chosen = next_turn(list(line), NO_LOAD, capacity, 0.0, AGEING_S)
        assert chosen is not None
        tags.advance(chosen.finish_tag, capacity.share_of(chosen.load))
        tenant = line.pop(chosen)
        served[tenant] += chosen.load.num_prompt_tokens
        arrive(tenant)
    return served


def test_tenants_share_by_cost_however_much_they_ask_for() -> None:
    served = served_shares({"many small": (10, 50), "few large": (200, 2), "modest": (40, 1)}, 1_000, 2_000)
    assert max(served.values()) - min(served.values()) <= 2 * 200


@given(st.integers(0, 2**32 - 1))
def test_nobody_starves(seed: int) -> None:
    """However much text comes, a video is served within the time it takes to age and one request more."""
    random, in_flight, running = Random(seed), NO_LOAD, list[tuple[float, Waiting]]()
    video = waiting(VIDEO, arrived_s=0.0, tag=0.5, num_patches=900, num_prompt_tokens=900)
    line, now_s, longest_s = [video], 0.0, 1.0
    while video in line:
        now_s += 0.05
        # Two ticks of slack: one to be seen as aged, one for those that end between ticks.
        assert now_s <= 3 * AGEING_S + longest_s + 0.2
        for end_s, request in [entry for entry in running if entry[0] <= now_s]:
            running.remove((end_s, request))
            in_flight = in_flight - request.load
        while len(line) < 12:
            line.append(waiting(TEXT, now_s, random.random(), num_prompt_tokens=random.randint(50, 400)))
        while (chosen := next_turn(line, in_flight, CAPACITY, now_s, AGEING_S)) is not None:
            line.remove(chosen)
            in_flight = in_flight + chosen.load
            running.append((now_s + random.uniform(0.05, longest_s), chosen))


def test_a_tenant_that_was_away_gains_nothing_by_it() -> None:
    tags = FairTags()
    for _ in range(5):
        tags.advance(tags.tag("busy", 1.0), 1.0)
    late = [tags.tag("late", 1.0) for _ in range(3)]
    assert late[0] >= 4.0 and late == sorted(late)
