"""What a program says of the form of an answer, and how a client puts several answers together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from triptych.client import json_object, json_schema, one_of, regex
from triptych.client.answer import AnswerBuilder
from triptych.client.request import SamplingOptions, make_request
from triptych.errors import InvalidRequest, Unavailable
from triptych.v1 import common_pb2, inference_pb2

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def sampling(**options: Any) -> common_pb2.SamplingParameters:
    values: SamplingOptions = {**options}  # type: ignore[typeddict-item]
    return make_request("x", (), (), values).sampling


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (json_schema(SCHEMA), "json_schema"),
        (json_schema(json.dumps(SCHEMA)), "json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}, "json_schema"),
        (json_object(), "json_object"),
        ({"type": "json_object"}, "json_object"),
        (regex("a+"), "regex"),
        (one_of("a", "b"), "choices"),
    ],
)
def test_forms(given: Any, form: str) -> None:
    constraint = sampling(response_format=given).constraint
    assert constraint.WhichOneof("form") == form
    if form == "json_schema":
        assert json.loads(constraint.json_schema) == SCHEMA


def test_plain_text_has_no_form() -> None:
    assert not sampling(response_format={"type": "text"}).HasField("constraint")


@pytest.mark.parametrize("given", [{}, {"type": "yaml"}, {"type": "json_schema"}, "json"])
def test_what_is_no_form_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequest, match="response_format"):
        sampling(response_format=given)


def test_values_of_other_types_name_their_field() -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampling(n="many")
    assert caught.value.field == "sampling.n"
    assert dict(sampling(logit_bias={5: 1.5}).logit_bias) == {5: 1.5}


def test_chunks_of_several_answers_are_put_together() -> None:
    builder = AnswerBuilder()
    logprob = common_pb2.TokenLogprob(token_id=4, logprob=-1.0)
    for chunk in (
        inference_pb2.TokenChunk(text="b", token_ids=[4], choice_index=1, logprobs=[logprob]),
        inference_pb2.TokenChunk(text="a", token_ids=[3]),
        inference_pb2.TokenChunk(text="c", token_ids=[5], choice_index=1),
    ):
        assert builder.add(inference_pb2.GenerateResponse(chunk=chunk)) == chunk
    with pytest.raises(Unavailable):
        builder.answer()
    choices = [
        inference_pb2.ChoiceSummary(choice_index=0, finish_reason=common_pb2.FINISH_REASON_STOP),
        inference_pb2.ChoiceSummary(choice_index=1, finish_reason=common_pb2.FINISH_REASON_LENGTH),
    ]
    summary = inference_pb2.GenerateSummary(finish_reason=common_pb2.FINISH_REASON_STOP, choices=choices)
    assert builder.add(inference_pb2.GenerateResponse(summary=summary)) is None
    answer = builder.answer()
    assert [(c.text, c.token_ids, c.finish_reason) for c in answer.choices] == [
        ("a", (3,), "stop"),
        ("bc", (4, 5), "length"),
    ]
    assert answer.text == "a" and answer.logprobs == () and answer.choices[1].logprobs == (logprob,)
