"""Work is bounded in patches, and the advice follows the rate of work."""

import pytest

from encoder_service.admission import PatchAdmission
from triptych.errors import Overloaded, RequestTooLarge


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_admits_up_to_the_bound_and_all_or_nothing() -> None:
    admission = PatchAdmission(100, Clock())
    admission.admit([60, 30])
    with pytest.raises(Overloaded, match=r"stages\.encoder\.max_pending_patches") as caught:
        admission.admit([5, 6])
    assert admission.pending_patches == 90
    assert caught.value.retry_after_s == 1.0
    admission.admit([10])
    admission.finish(60)
    admission.drop(30)
    assert admission.pending_patches == 10


def test_what_can_never_fit_is_too_large() -> None:
    with pytest.raises(RequestTooLarge, match=r"101 patches.* at most 100 \(stages\.encoder\.max_pending_patches\)"):
        PatchAdmission(100, Clock()).admit([101])


def test_nothing_to_admit_is_always_admitted() -> None:
    admission = PatchAdmission(100, Clock())
    admission.admit([100])
    admission.admit([])


def test_advice_is_the_excess_over_the_rate() -> None:
    clock = Clock()
    admission = PatchAdmission(100, clock)
    admission.admit([100])
    for _ in range(5):
        admission.finish(20)
        admission.admit([20])
        clock.now += 0.5
    with pytest.raises(Overloaded) as caught:
        admission.admit([80])
    assert caught.value.retry_after_s == pytest.approx(80 / 40)
    clock.now += 60
    with pytest.raises(Overloaded) as caught:
        admission.admit([80])
    assert caught.value.retry_after_s == 1.0
