"""What a router remembers of the actors' caches, and the keys of a prompt's beginning."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.cache_map import PREFIX_BLOCK_TOKENS, CacheMap, prefix_keys
from router.dispatch.prepared_request import MediaItem
from triptych.v1 import common_pb2

B = PREFIX_BLOCK_TOKENS


def picture(content_key: str, offset: int, num_tokens: int) -> MediaItem:
    return MediaItem(common_pb2.Media(), content_key, common_pb2.Grid(t=1, h=2, w=2), 0.0, offset, num_tokens, "f")


@given(st.lists(st.integers(0, 150_000), max_size=3 * B), st.lists(st.integers(0, 150_000), max_size=3 * B))
def test_prompts_share_as_many_keys_as_full_blocks(first: list[int], second: list[int]) -> None:
    common = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    shared = [a == b for a, b in zip(prefix_keys(first, ()), prefix_keys(second, ()), strict=False)]
    assert shared == [True] * (common // B) + [False] * (len(shared) - common // B)


def test_another_picture_is_another_prefix_from_its_block_on() -> None:
    tokens = list(range(B)) + [7] * (2 * B)
    cat, dog = picture("cat", B + 3, B), picture("dog", B + 3, B)
    assert prefix_keys(tokens, (cat,)) == prefix_keys(tokens, (replace(cat, field="other"),))
    with_cat, with_dog = prefix_keys(tokens, (cat,)), prefix_keys(tokens, (dog,))
    assert with_cat[0] == with_dog[0]
    assert not set(with_cat[1:]) & set(with_dog[1:])


def test_the_oldest_is_forgotten_when_the_room_is_used_up() -> None:
    held = CacheMap()
    for key in ("x", "y", "x", "z"):
        held.remember("encoder-a", key, cost=4, room=8)
    assert [held.holds("encoder-a", key) for key in "xyz"] == [True, False, True]
    assert not held.holds("encoder-b", "x")


def test_what_is_larger_than_the_room_is_not_remembered() -> None:
    held = CacheMap()
    held.remember("a", "small", cost=1, room=8)
    held.remember("a", "large", cost=9, room=8)
    assert not held.holds("a", "large")


def test_leading_keys_end_at_the_first_that_is_missing() -> None:
    held = CacheMap()
    for key in (1, 2, 4):
        held.remember("a", key, 1, 10)
    assert held.num_leading("a", (1, 2, 3, 4)) == 2
    assert held.num_leading("a", ()) == held.num_leading("b", (1,)) == 0


def test_actors_that_left_are_forgotten() -> None:
    held = CacheMap()
    held.remember("a", 1, 1, 10)
    held.remember("b", 1, 1, 10)
    held.retain({"b"})
    assert (held.holds("a", 1), held.holds("b", 1)) == (False, True)
