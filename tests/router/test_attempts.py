"""Attempts at one request: how many, how soon, and where."""

from __future__ import annotations

from collections.abc import Collection

from router.dispatch.attempts import Attempts
from triptych.errors import Overloaded, Unavailable
from triptych.rpc.deadline import Deadline


def attempts(max_attempts: int = 3, actors: Collection[str] = ("a",)) -> Attempts:
    """At time 0, with 10 s to go."""
    return Attempts(max_attempts, Deadline(10.0, lambda: 0.0), lambda avoided: not set(actors) <= set(avoided))


def test_failures_are_counted_and_their_pauses_grow() -> None:
    some = attempts()
    assert some.pause_s(Unavailable("lost"), {"a"}) == 0.05
    assert some.pause_s(Unavailable("lost"), {"b"}) == 0.2
    assert (some.avoid, some.num_left) == ({"a", "b"}, 1)
    assert some.pause_s(Unavailable("lost"), {"c"}) is None


def test_a_full_actor_costs_no_attempt_and_gets_the_time_that_it_wants() -> None:
    some = attempts(max_attempts=1)
    pauses = [some.pause_s(Overloaded("full", retry_after_s=0.5), {"a"}) for _ in range(4)]
    assert pauses == [0.5, 1.0, 2.0, 2.0]
    assert (some.avoid, some.num_left) == (set(), 1)


def test_siblings_are_asked_first() -> None:
    some = attempts(actors=("a", "b"))
    assert some.pause_s(Overloaded("full", retry_after_s=0.5), {"a"}) == 0.05
    assert some.avoid == {"a"}
    assert some.pause_s(Overloaded("full", retry_after_s=0.5), {"b"}) == 0.5
    assert some.avoid == set()


def test_one_that_failed_is_still_avoided_when_the_full_ones_are_asked_again() -> None:
    some = attempts(actors=("a", "b"))
    some.pause_s(Unavailable("lost"), {"a"})
    assert some.pause_s(Overloaded("full", retry_after_s=0.5), {"b"}) == 0.5
    assert some.avoid == {"a"}


def test_no_attempt_comes_after_the_deadline() -> None:
    assert attempts().pause_s(Overloaded("full", retry_after_s=10.0), {"a"}) is None
