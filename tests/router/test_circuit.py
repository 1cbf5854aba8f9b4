"""When an actor is left alone, for how long, and what brings it back. In virtual time."""

from __future__ import annotations

from router.dispatch.circuit import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def breaker() -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    return CircuitBreaker(max_failures=3, pause_s=1.0, max_pause_s=4.0, clock=clock), clock


def test_it_opens_after_failures_in_a_row_only() -> None:
    circuits, _ = breaker()
    for _ in range(2):
        circuits.note_failure(["a"])
    circuits.note_success(["a"])
    for _ in range(2):
        circuits.note_failure(["a"])
    assert circuits.open_actors() == set()
    circuits.note_failure(["a"])
    assert circuits.open_actors() == {"a"}


def test_one_request_tries_again_after_a_pause_that_doubles() -> None:
    circuits, clock = breaker()
    for _ in range(3):
        circuits.note_failure(["a"])
    for pause_s in (1.0, 2.0, 4.0, 4.0):
        clock.now_s += pause_s - 0.01
        assert circuits.open_actors() == {"a"}
        clock.now_s += 0.02
        assert circuits.open_actors() == set()
        circuits.note_chosen(["a"])
        assert circuits.open_actors() == {"a"}, "the trial is one request"
        circuits.note_failure(["a"])


def test_a_trial_that_succeeds_closes_it() -> None:
    circuits, clock = breaker()
    for _ in range(3):
        circuits.note_failure(["a", "b"])
    clock.now_s += 1.1
    circuits.note_chosen(["a"])
    circuits.note_success(["a"])
    circuits.note_chosen(["a"])
    assert "a" not in circuits.open_actors()
    circuits.note_failure(["a"])
    assert "a" not in circuits.open_actors()


def test_choosing_a_healthy_actor_changes_nothing() -> None:
    circuits, _ = breaker()
    circuits.note_failure(["a"])
    circuits.note_chosen(["a", "b"])
    assert circuits.open_actors() == set()


def test_actors_that_left_are_forgotten() -> None:
    circuits, _ = breaker()
    for _ in range(3):
        circuits.note_failure(["a"])
    circuits.retain([])
    assert circuits.open_actors() == set()
