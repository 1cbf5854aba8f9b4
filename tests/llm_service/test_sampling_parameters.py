"""Sampling parameters are checked at the door, and each complaint names its field."""

from __future__ import annotations

import math

import pytest

from triptych.config import DefaultsSection, LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.sampling import SamplingParameters, choice_seed
from triptych.v1 import common_pb2

DEFAULTS = DefaultsSection.model_validate({"max_tokens": 77, "temperature": 0.5})
LIMITS = LimitsSection.model_validate(
    {
        "max_new_tokens": 1_000,
        "max_stop_strings": 2,
        "max_choices": 4,
        "max_logit_biases": 2,
        "max_constraint_bytes": 100,
    }
)


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
        temperature=1.2,
        top_p=0.5,
        top_k=3,
        stop=["x"],
        stop_token_ids=[5],
        min_tokens=2,
        ignore_eos=True,
        n=3,
        logprobs=0,
        presence_penalty=0.5,
        frequency_penalty=-2.0,
        repetition_penalty=1.1,
        logit_bias={7: 1.5, 3: -100.0},
        constraint=common_pb2.Constraint(choices=common_pb2.Constraint.Choices(texts=["a", "b"])),
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
        ("n", {"n": 0}, InvalidRequest),
        ("n", {"n": 5}, InvalidRequest),
        ("logprobs", {"logprobs": 21}, InvalidRequest),
        ("presence_penalty", {"presence_penalty": 2.1}, InvalidRequest),
        ("frequency_penalty", {"frequency_penalty": math.nan}, InvalidRequest),
        ("repetition_penalty", {"repetition_penalty": 0.0}, InvalidRequest),
        ("repetition_penalty", {"repetition_penalty": 0.0099}, InvalidRequest),
        ("repetition_penalty", {"repetition_penalty": math.inf}, InvalidRequest),
        ("logit_bias", {"logit_bias": {3: 101.0}}, InvalidRequest),
        ("logit_bias", {"logit_bias": {3: math.nan}}, InvalidRequest),
        ("logit_bias", {"logit_bias": dict.fromkeys(range(3), 1.0)}, RequestTooLarge),
        ("constraint", {"constraint": common_pb2.Constraint()}, InvalidRequest),
        ("constraint.json_object", {"constraint": common_pb2.Constraint(json_object=False)}, InvalidRequest),
        ("constraint.regex", {"constraint": common_pb2.Constraint(regex="")}, InvalidRequest),
        ("constraint.json_schema", {"constraint": common_pb2.Constraint(json_schema=" " * 101)}, RequestTooLarge),
    ],
)
def test_bad_values_are_named(field: str, fields: dict[str, object], error: type[InvalidRequest]) -> None:
    with pytest.raises(error, match=f"sampling.{field}") as caught:
        read(**fields)
    assert caught.value.field == f"sampling.{field}"


def test_every_choice_has_a_seed_of_its_own() -> None:
    parameters = read(seed=2**64 - 1, n=4)
    choices = [parameters.of_choice(index) for index in range(4)]
    assert choices[0].seed == parameters.seed and len({choice.seed for choice in choices}) == 4
    assert all(0 <= choice.seed < 2**64 and choice.n == 1 for choice in choices)
    # The same for ever: whoever kept a seed gets the answer again.
    assert [choice_seed(7, index) for index in range(3)] == [7, 7_191_089_600_892_374_487, 309_689_372_594_955_804]
