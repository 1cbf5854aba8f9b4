"""Choosing by measurement: what helps is kept, what fails is not tried again, and noise decides nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from llm_service.step_choice import StepChoice, moves_of_many, moves_of_one, nearest, quickest
from triptych.kernels.decode_attention import choose_plan
from triptych.models.qwen2_5_vl.fused import SkinnyPlan

BASE = StepChoice(choose_plan(1, 2, 32_768), SkinnyPlan(pdl=True), pdl=True)


def test_moves_that_help_are_kept_together() -> None:
    def time_ms(choice: StepChoice) -> float:
        assert choice.skinny is not None
        if choice.skinny.upcoming_bytes > 8 << 20:
            raise RuntimeError("no such instruction")
        slower = 0.5 if not choice.pdl else 0.0
        return 2.0 + slower - 0.1 * (choice.skinny.down is not None) - 0.2 * (choice.skinny.qkv is not None)

    best = quickest(BASE, moves_of_one(), time_ms, limit_s=10.0)
    assert best.skinny is not None and best.skinny.down is not None and best.skinny.qkv is not None
    assert best.pdl and best.skinny.pdl and best.skinny.upcoming_bytes == 0
    assert best.skinny.gate_up is None and best.attention == BASE.attention


def test_noise_and_a_time_limit_leave_the_base() -> None:
    times = iter([2.0, *[1.995] * 50])
    assert quickest(BASE, moves_of_many(), lambda choice: next(times), limit_s=10.0) == BASE
    assert quickest(BASE, moves_of_one(), lambda choice: 1.0 if choice == BASE else 0.1, limit_s=-1.0) == BASE


def test_batches_follow_the_next_larger_one() -> None:
    tuned = {1: BASE, 64: BASE, 128: BASE}
    assert [nearest(batch, tuned) for batch in (1, 2, 64, 72, 256)] == [1, 64, 64, 128, None]
    assert nearest(4, {}) is None
