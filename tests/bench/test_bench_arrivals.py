"""Arrivals: rate, shape, and the same again for the same seed."""

import math
from itertools import pairwise
from random import Random
from statistics import fmean, pstdev

import pytest

from triptych.bench.arrivals import arrival_times
from triptych.errors import ConfigurationError


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gaps_are_gamma_with_the_rate_asked_for(burstiness: float) -> None:
    times = arrival_times(20_000, 50.0, burstiness, Random(1))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(20_000 / 50.0)
    assert fmean(gaps) == pytest.approx(1 / 50.0, rel=0.01)
    # Coefficient of variation of a gamma distribution of shape k: 1 / sqrt(k).
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_an_infinite_rate_is_all_at_once() -> None:
    assert arrival_times(3, math.inf, 1.0, Random(1)) == [0.0, 0.0, 0.0]


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert arrival_times(100, 3.0, 1.0, Random(7)) == arrival_times(100, 3.0, 1.0, Random(7))


@pytest.mark.parametrize(("rate", "burstiness", "field"), [(0.0, 1.0, "request_rate"), (1.0, 0.0, "burstiness")])
def test_what_is_no_rate_is_told(rate: float, burstiness: float, field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        arrival_times(1, rate, burstiness, Random(1))
    assert caught.value.field == field
