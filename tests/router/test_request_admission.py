from __future__ import annotations

import pytest

from router.dispatch.admission import Admission
from triptych.errors import Overloaded


def test_over_the_limit_is_refused_with_advice_and_places_come_free() -> None:
    admission = Admission(max_pending_requests=1)
    with admission.admit():
        with pytest.raises(Overloaded, match=r"limits\.max_pending_requests") as caught, admission.admit():
            pass
        assert caught.value.retry_after_s > 0
        assert admission.num_pending == 1
    with admission.admit():
        assert admission.num_pending == 1


def test_a_failed_request_gives_its_place_back() -> None:
    admission = Admission(max_pending_requests=1)
    with pytest.raises(ValueError), admission.admit():
        raise ValueError
    assert admission.num_pending == 0


def test_advice_grows_with_the_time_requests_stay() -> None:
    now = [0.0]
    admission = Admission(1, clock=lambda: now[0])

    def advice() -> float:
        with admission.admit(), pytest.raises(Overloaded) as caught, admission.admit():
            pass
        return caught.value.retry_after_s

    before = advice()
    for _ in range(50):
        with admission.admit():
            now[0] += 60
    assert advice() > 10 * before
