"""What goes into a batch: pure policies, in virtual time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_service.batching import BatchPolicy, BatchRoom, batch_policy, due_at, first_come, shortest_work_first
from triptych.errors import ConfigurationError

MAX_PATCHES = 1_000
AGEING_S = 0.5


@dataclass(eq=False)
class Item:
    num_patches: int
    arrived: float = 0.0
    deadline: float = math.inf
    media_bytes: int = 0
    num_patches_ahead: int = 0
    begun: float = math.nan


def room(
    max_patches: int = MAX_PATCHES, ageing_s: float = AGEING_S, fits: Callable[[int, int], bool] = lambda *_: True
) -> BatchRoom:
    return BatchRoom(max_patches, ageing_s, fits)


def sizes(batch: list[Item]) -> list[int]:
    return [item.num_patches for item in batch]


def test_of_items_that_come_together_the_shortest_goes_first() -> None:
    waiting = [Item(900), Item(300), Item(100), Item(500)]
    assert sizes(shortest_work_first(waiting, room())) == [100, 300, 500]


def test_a_large_one_is_overtaken_only_until_it_is_due() -> None:
    large = Item(800, arrived=0.0)  # due 0.4 s later
    assert due_at(large, room()) == pytest.approx(0.4)
    early, late = Item(400, arrived=0.19), Item(400, arrived=0.21)
    assert shortest_work_first([large, early], room())[0] is early
    assert shortest_work_first([large, late], room())[0] is large


def test_a_deadline_goes_before_ageing() -> None:
    pressed = Item(800, deadline=0.05)
    assert shortest_work_first([Item(200), pressed], room())[0] is pressed


def test_what_is_larger_than_a_batch_goes_alone() -> None:
    large = Item(2_500)
    assert shortest_work_first([large], room()) == [large]
    assert shortest_work_first([large, Item(10, arrived=9.0)], room()) == [large]


def test_what_does_not_fit_is_passed_over_for_what_does() -> None:
    assert sizes(shortest_work_first([Item(600), Item(700), Item(390, arrived=0.9)], room())) == [600, 390]


def test_memory_bounds_a_batch_and_holds_the_first_back() -> None:
    little = room(fits=lambda num_patches, media_bytes: num_patches + media_bytes <= 500)
    waiting = [Item(100), Item(200, media_bytes=300), Item(250)]
    assert sizes(shortest_work_first(waiting, little)) == [100, 250]
    # Nothing goes before the first: it would wait for ever for a moment in which all is free.
    assert shortest_work_first([Item(50, media_bytes=600), Item(60)], little) == []


def test_first_come() -> None:
    waiting = [Item(600), Item(500), Item(300)]
    assert sizes(first_come(waiting, room())) == [600, 300]


def test_policies_by_name() -> None:
    assert batch_policy("shortest_work_first") is shortest_work_first
    with pytest.raises(ConfigurationError, match=r"stages\.encoder\.batching is 'lottery', expected one of shortest"):
        batch_policy("lottery")


def run(policy: BatchPolicy, items: list[Item], patches_per_s: float, given_room: BatchRoom) -> list[float]:
    """One batch after another, each as long as its patches; sets `begun`, answers when batches began."""
    to_come = sorted(items, key=lambda item: item.arrived)
    waiting: list[Item] = []
    begins: list[float] = []
    now = 0.0
    while to_come or waiting:
        if not waiting:
            now = max(now, to_come[0].arrived)
        while to_come and to_come[0].arrived <= now:
            waiting.append(to_come.pop(0))
        batch = policy(waiting, given_room)
        assert batch, "nothing else runs and all memory is free"
        begins.append(now)
        for item in batch:
            waiting.remove(item)
            item.begun = now
        now += sum(item.num_patches for item in batch) / patches_per_s
    return begins


ITEMS = st.lists(
    st.builds(
        Item,
        num_patches=st.integers(1, 1_500),
        arrived=st.floats(0, 5, allow_nan=False),
        deadline=st.one_of(st.just(math.inf), st.floats(5, 30, allow_nan=False)),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(items=ITEMS, patches_per_s=st.floats(500, 50_000))
def test_nothing_starves(items: list[Item], patches_per_s: float) -> None:
    """The bound of the docstring, for every item: once it is due, what is ahead of it can but shrink, and it goes
    within 2 W / max_patches + 2 batches."""
    given_room = room()
    begins = run(shortest_work_first, items, patches_per_s, given_room)
    for item in items:
        due = due_at(item, given_room)
        ahead = [
            other
            for other in items
            if other is not item and other.begun >= due and due_at(other, given_room) <= due and other.arrived <= due
        ]
        num_patches_ahead = sum(other.num_patches for other in ahead)
        num_batches = sum(due <= begin <= item.begun for begin in begins)
        assert num_batches <= 2 * num_patches_ahead / MAX_PATCHES + 2
        overtakers = [other for other in items if other.begun < item.begun and other.arrived > due]
        # Later ones only fill batches up; none is ever the first of one.
        assert all(any(first.begun == other.begun and due_at(first, given_room) <= due for first in items)
                   for other in overtakers)  # fmt: skip


def test_a_stream_of_small_ones_does_not_keep_a_large_one_waiting() -> None:
    """The load is above what can be done, for ever: without ageing the large one would never go."""
    large = Item(1_000)
    stream = [Item(100, arrived=0.004 * index) for index in range(1, 3_000)]
    run(shortest_work_first, [large, *stream], patches_per_s=20_000, given_room=room())
    assert large.begun <= AGEING_S + 0.3
    eternal = Item(1_000)
    stream = [Item(100, arrived=0.004 * index) for index in range(3_000)]
    run(shortest_work_first, [eternal, *stream], patches_per_s=20_000, given_room=room(ageing_s=1e6))
    assert eternal.begun > 11


def test_short_work_waits_less_than_in_order_of_arrival() -> None:
    def mean_wait(policy: BatchPolicy) -> float:
        items = [Item(900 if index % 4 == 0 else 150, arrived=0.001 * (index // 40)) for index in range(200)]
        run(policy, items, patches_per_s=26_000, given_room=room())
        return sum(item.begun - item.arrived for item in items) / len(items)

    assert mean_wait(shortest_work_first) < 0.7 * mean_wait(first_come)
