"""Placement policies on paper, and the ledger of loads that they read."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.loads import NO_LOAD, Load, LoadLedger
from router.dispatch.placement import PLACEMENT_POLICIES, Candidate, Chance, MediaWork, placement_policy
from triptych.errors import ConfigurationError

CHANCE = Chance(0, Random(1))
THREE = [Candidate(f"encoder-{name}") for name in "abc"]
CACHE_AWARE, LEAST_LOADED = placement_policy("cache_aware"), placement_policy("least_loaded")


def busy(candidate: Candidate, **load: int) -> Candidate:
    return replace(candidate, load=Load(**load))


@pytest.mark.parametrize("name", ["cache_aware", "least_loaded"])
def test_pictures_of_one_request_are_split_evenly(name: str) -> None:
    items = [MediaWork(f"key{index}", size) for index, size in enumerate((1, 4, 7, 3, 4, 5))]
    chosen = placement_policy(name).encoders(items, THREE, CHANCE)
    totals = dict.fromkeys((candidate.actor_id for candidate in THREE), 0)
    for item, candidate in zip(items, chosen, strict=True):
        totals[candidate.actor_id] += item.num_patches
    assert max(totals.values()) == 8 and sum(totals.values()) == 24


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.integers(1, 5))
def test_the_split_is_within_four_thirds_of_the_best(sizes: list[int], num_encoders: int) -> None:
    """Graham's bound for longest processing time first, against the bound that no split can beat."""
    encoders = [Candidate(f"encoder-{index}") for index in range(num_encoders)]
    items = [MediaWork(str(index), size) for index, size in enumerate(sizes)]
    totals = dict.fromkeys((encoder.actor_id for encoder in encoders), 0)
    for item, candidate in zip(items, LEAST_LOADED.encoders(items, encoders, CHANCE), strict=True):
        totals[candidate.actor_id] += item.num_patches
    second = sorted(sizes, reverse=True)[num_encoders : num_encoders + 1]
    # The largest of them, the average, or two that must share an encoder.
    lower_bound = max(max(sizes), sum(sizes) / num_encoders, 2 * second[0] if second else 0)
    assert max(totals.values()) <= 4 / 3 * lower_bound


def test_a_busy_encoder_gets_less() -> None:
    encoders = [busy(THREE[0], num_patches=100), *THREE[1:]]
    chosen = CACHE_AWARE.encoders([MediaWork("x", 10), MediaWork("y", 10)], encoders, CHANCE)
    assert {candidate.actor_id for candidate in chosen} == {"encoder-b", "encoder-c"}


@pytest.mark.parametrize(("backlog", "expected"), [(0, "encoder-c"), (40, "encoder-c"), (41, "encoder-a")])
def test_a_repeat_follows_its_cache_as_long_as_the_queue_there_is_bearable(backlog: int, expected: str) -> None:
    holder = replace(busy(THREE[2], num_patches=backlog), cached_content=frozenset("x"))
    [chosen] = CACHE_AWARE.encoders([MediaWork("x", 10)], [*THREE[:2], holder], CHANCE)
    assert chosen.actor_id == expected


def test_cached_pictures_do_not_count_as_work_of_their_encoder() -> None:
    holder = replace(THREE[0], cached_content=frozenset("x"))
    items = [MediaWork("x", 100), MediaWork("y", 10)]
    chosen = CACHE_AWARE.encoders(items, [holder, THREE[1]], CHANCE)
    assert [candidate.actor_id for candidate in chosen] == ["encoder-a", "encoder-a"]


@pytest.mark.parametrize("name", PLACEMENT_POLICIES)
@given(st.lists(st.sampled_from("uvwxyz"), min_size=1), st.integers(1, 6), st.integers(0, 99))
def test_one_picture_twice_goes_to_one_encoder(name: str, keys: list[str], num_encoders: int, turn: int) -> None:
    encoders = [Candidate(f"encoder-{index}") for index in range(num_encoders)]
    items = [MediaWork(key, 10) for key in keys]
    chosen = placement_policy(name).encoders(items, encoders, Chance(turn, Random(turn)))
    assert len(chosen) == len(items)
    assert len({(item.content_key, candidate.actor_id) for item, candidate in zip(items, chosen, strict=True)}) == len(
        set(keys)
    )


def test_prefill_goes_where_the_fewest_tokens_are_left_to_compute() -> None:
    empty, cached = Candidate("empty"), Candidate("cached", num_cached_tokens=900)
    assert CACHE_AWARE.prefill(1_000, [empty, cached], CHANCE) is cached
    waits = replace(cached, load=Load(num_prompt_tokens=901))
    assert CACHE_AWARE.prefill(1_000, [empty, waits], CHANCE) is empty
    assert LEAST_LOADED.prefill(1_000, [empty, cached], CHANCE) is empty


def test_no_more_of_a_prompt_is_saved_than_it_has() -> None:
    """A short prompt must not run to a busy actor for a long cached beginning that it shares a part of."""
    busy_holder = Candidate("holder", load=Load(num_prompt_tokens=150), num_cached_tokens=128)
    assert CACHE_AWARE.prefill(100, [Candidate("empty"), busy_holder], CHANCE).actor_id == "empty"


def test_decode_goes_by_the_part_of_the_cache_that_is_spoken_for() -> None:
    small = Candidate("small", load=Load(num_kv_tokens=500, num_requests=1), num_kv_tokens=1_000)
    large = Candidate("large", load=Load(num_kv_tokens=2_000, num_requests=9), num_kv_tokens=8_000)
    assert CACHE_AWARE.decode([small, large], CHANCE) is large


def test_round_robin_takes_turns() -> None:
    policy = placement_policy("round_robin")
    turns = [policy.decode(THREE, Chance(turn, Random(0))).actor_id for turn in range(4)]
    assert turns == ["encoder-a", "encoder-b", "encoder-c", "encoder-a"]


def test_two_choices_keep_many_blind_routers_from_one_actor() -> None:
    """Each of many routers sees all actors idle: the least loaded is then the same for all, two choices spread."""
    actors = [Candidate(f"decode-{index}") for index in range(8)]
    policy, random = placement_policy("power_of_two"), Random(5)
    chosen = [policy.decode(actors, Chance(turn, random)).actor_id for turn in range(800)]
    counts = [chosen.count(actor.actor_id) for actor in actors]
    assert max(counts) < 2 * 100
    assert {LEAST_LOADED.decode(actors, CHANCE).actor_id for _ in range(10)} == {"decode-0"}


def test_two_choices_take_the_better_one_and_know_of_caches() -> None:
    actors = [Candidate(f"p{index}", load=Load(num_prompt_tokens=5_000)) for index in range(9)]
    holder = Candidate("holder", num_cached_tokens=4_000)
    policy = placement_policy("power_of_two")
    assert all(policy.prefill(4_096, [*actors, holder], Chance(t, Random(t))) is holder for t in range(20))


def test_unknown_names_are_told_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="cache_aware, least_loaded, power_of_two, round_robin"):
        placement_policy("best")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.booleans())))
def test_the_ledger_returns_to_nothing(holds: list[tuple[str, int, bool]]) -> None:
    loads = LoadLedger()
    taken = [(loads.take(actor, Load(num_patches=size, num_kv_tokens=3 * size)), twice) for actor, size, twice in holds]
    assert loads.of("a").num_patches == sum(size for actor, size, _ in holds if actor == "a")
    for hold, twice in taken:
        hold.release()
        if twice:
            hold.release()
    assert loads.of("a") == loads.of("b") == NO_LOAD
