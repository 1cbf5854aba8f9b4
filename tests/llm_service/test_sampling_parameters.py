"""Sampling parameters are checked at the door, and each complaint names its field."""

from __future__ import annotations

import math

import pytest

from triptych.config import DefaultsSection, LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.sampling import SamplingParameters
from triptych.v1 import common_pb2

DEFAULTS = DefaultsSection.model_validate({"max_tokens": 77, "temperature": 0.5})
LIMITS = LimitsSection.model_validate({"max_new_tokens": 1_000, "max_stop_strings": 2})


def read(**fields: object) -> SamplingParameters:
    return SamplingParameters.from_proto(common_pb2.SamplingParameters(**fields), DEFAULTS, LIMITS)  # type: ignore[arg-type]


def test_defaults_fill_what_is_absent() -> None:
    parameters = read()
    assert (parameters.max_tokens, parameters.temperature, parameters.top_p, parameters.top_k) == (77, 0.5, 1.0, 0)
    assert read().seed != read().seed


def test_given_values_stay_zero_included() -> None:
    assert read(temperature=0.0).is_greedy
    assert read(seed=0).seed == 0
    assert read(seed=2**64 - 1).seed == 2**64 - 1


def test_round_trip_leaves_nothing_to_a_default() -> None:
    parameters = read(
        temperature=1.2, top_p=0.5, top_k=3, stop=["x"], stop_token_ids=[5], min_tokens=2, ignore_eos=True
    )
    assert (
        SamplingParameters.from_proto(parameters.to_proto(), DefaultsSection.model_validate({}), LIMITS) == parameters
    )


@pytest.mark.parametrize(
    ("field", "fields", "error"),
    [
        ("temperature", {"temperature": math.nan}, InvalidRequest),
        ("temperature", {"temperature": math.inf}, InvalidRequest),
        ("temperature", {"temperature": -0.1}, InvalidRequest),
        ("top_p", {"top_p": 0.0}, InvalidRequest),
        ("top_p", {"top_p": 1.01}, InvalidRequest),
        ("top_p", {"top_p": math.nan}, InvalidRequest),
        ("max_tokens", {"max_tokens": 0}, InvalidRequest),
        ("max_tokens", {"max_tokens": 1_001}, RequestTooLarge),
        ("min_tokens", {"max_tokens": 3, "min_tokens": 4}, InvalidRequest),
        ("stop", {"stop": ["a", "b", "c"]}, RequestTooLarge),
        ("stop", {"stop": [""]}, InvalidRequest),
        ("stop_token_ids", {"stop_token_ids": list(range(1_025))}, RequestTooLarge),
    ],
)
def test_bad_values_are_named(field: str, fields: dict[str, object], error: type[InvalidRequest]) -> None:
    with pytest.raises(error, match=f"sampling.{field}") as caught:
        read(**fields)
    assert caught.value.field == f"sampling.{field}"
