"""What the benchmark of the modes says about auto."""

from __future__ import annotations

import pytest

from benchmarks.modes.__main__ import Sample, ratios


def test_a_slow_round_slows_all_modes_and_says_nothing_about_auto() -> None:
    """Auto is 10 % slower than colocated in every round, also in those where all are three times as slow."""
    slowness = (1.0, 3.0, 1.0, 3.0, 3.0)
    samples = {
        "colocated": [Sample(10.0 * factor, 100.0 / factor) for factor in slowness],
        "disaggregated": [Sample(20.0 * factor, 50.0 / factor) for factor in slowness],
        "auto": [Sample(11.0 * factor, 90.0 / factor) for factor in slowness],
    }
    assert ratios(samples) == pytest.approx((1.1, 0.9))
    # In one round auto alone was hit: one of five does not count.
    samples["auto"][0] = Sample(99.0, 10.0)
    assert ratios(samples) == pytest.approx((1.1, 0.9))
