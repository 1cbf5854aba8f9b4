"""The messages that both clients send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from triptych.client.content import ImageSource, Message, VideoSource, to_messages
from triptych.client.response_format import ResponseFormat, to_constraint
from triptych.errors import InvalidRequest
from triptych.v1 import common_pb2, inference_pb2

# The router's own limit counts; it answers with the size and the setting.
NO_LIMIT = -1


class SamplingOptions(TypedDict, total=False):
    """How the next token is chosen; what is left out is the server's default (see SamplingParameters in the protos).

    n: that many answers (`Answer.choices`), each with a seed of its own derived from `seed`. logprobs: every token
    comes with its log probability and those of so many likeliest tokens (`Answer.logprobs`), in the model's own
    distribution.
    presence_penalty, frequency_penalty: as in the OpenAI API, over the answer; repetition_penalty: as in transformers,
    over prompt and answer. logit_bias: token id to what is added to its logit. response_format: the form of the answer,
    one of `json_schema(...)`, `json_object()`, `regex(...)` and `one_of(...)`, or OpenAI's mapping.
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    min_tokens: int
    n: int
    logprobs: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    response_format: ResponseFormat


def make_request(
    question: str | Sequence[Message],
    images: Sequence[ImageSource],
    videos: Sequence[VideoSource],
    sampling: SamplingOptions,
) -> inference_pb2.GenerateRequest:
    """Raises InvalidRequest for what can't be put into a request, OSError for files that can't be read."""
    return inference_pb2.GenerateRequest(
        messages=to_messages(question, images, videos), sampling=_sampling_parameters(sampling)
    )


def stage_number(stage: str) -> common_pb2.Stage:
    """The stage of a name as in the configuration: encoder, prefill, decode or prefill_decode."""
    names = {name.removeprefix("STAGE_").lower(): name for name, number in common_pb2.Stage.items() if number}
    if stage not in names:
        raise InvalidRequest(f"stage is {stage!r}, expected one of {', '.join(names)}", field="stage")
    number: common_pb2.Stage = getattr(common_pb2, names[stage])
    return number


def _sampling_parameters(options: SamplingOptions) -> common_pb2.SamplingParameters:
    stop = options.get("stop", ())
    if isinstance(stop, str):
        options = {**options, "stop": [stop]}
    unknown = set(options) - set(SamplingOptions.__annotations__)
    if unknown:
        raise TypeError(
            f"unknown options {sorted(unknown)}, expected some of {', '.join(SamplingOptions.__annotations__)}"
        )
    fields: dict[str, Any] = {name: value for name, value in options.items() if name != "response_format"}
    for name, value in fields.items():
        try:
            common_pb2.SamplingParameters(**{name: value})
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"{name} is {value!r}: {error}", field=f"sampling.{name}") from None
    if "response_format" in options:
        fields["constraint"] = to_constraint(options["response_format"])
    return common_pb2.SamplingParameters(**fields)
