"""From a chat completion request to the protos' GenerateRequest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from router.api.openai.media_url import RemoteMedia, fill_image, fill_video
from router.api.openai.problem import invalid_body
from router.api.openai.schema import (
    UINT32_MAX,
    ChatCompletionRequest,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    TextPart,
    VideoPart,
)
from triptych.config import LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.v1 import common_pb2, inference_pb2

# A parsed value takes some thirty bytes where two may do in the text ("1,").
MAX_JSON_COMMAS = 1_000_000
_ROLES = {"developer": "system"}
_SAME_NAMES = (
    "n",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
)


@dataclass(frozen=True)
class Conversion:
    """The request for the stages, less the bytes of `remote`; and how its answer is to be told."""

    request: inference_pb2.GenerateRequest
    remote: tuple[RemoteMedia, ...]
    is_streamed: bool
    includes_usage: bool
    timeout_s: float | None


def convert(body: bytes, request_id: str, limits: LimitsSection) -> Conversion:
    """Parses, checks the form, decodes data: URLs. Computes for milliseconds a megabyte: call it on a thread.

    Raises InvalidRequest and RequestTooLarge with the path of what is wrong. Ranges of values and everything about the
    model are left to the dispatcher, which does the same for gRPC.
    """
    if body.count(b",") > MAX_JSON_COMMAS:
        raise RequestTooLarge(f"the body is JSON of more than {MAX_JSON_COMMAS} values")
    try:
        chat = ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from None
    _check_counts(chat, limits)
    request = inference_pb2.GenerateRequest(request_id=request_id, model=chat.model, sampling=_sampling(chat))
    remote: list[RemoteMedia] = []
    for index, message in enumerate(chat.messages):
        remote.extend(_add_message(request, message, f"messages[{index}]", limits))
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequest("stream_options goes with stream: true", field="stream_options")
    return Conversion(
        request=request,
        remote=tuple(remote),
        is_streamed=bool(chat.stream),
        includes_usage=chat.stream_options is not None and chat.stream_options.include_usage,
        timeout_s=chat.timeout_s,
    )


def _check_counts(chat: ChatCompletionRequest, limits: LimitsSection) -> None:
    """Before anything is decoded or fetched."""
    num_media = sum(
        not isinstance(part, TextPart)
        for message in chat.messages
        if not isinstance(message.content, str)
        for part in message.content
    )
    if num_media > limits.max_media_items:
        raise RequestTooLarge(
            f"messages have {num_media} pictures and videos, expected at most {limits.max_media_items} "
            "(limits.max_media_items)",
            field="messages",
        )


def _add_message(
    request: inference_pb2.GenerateRequest, message: Message, field: str, limits: LimitsSection
) -> Iterator[RemoteMedia]:
    added = request.messages.add(role=_ROLES.get(message.role, message.role))
    if isinstance(message.content, str):
        added.parts.add(text=message.content)
        return
    for number, part in enumerate(message.content):
        remote = _add_part(added, part, f"{field}.content[{number}]", limits)
        if remote is not None:
            yield remote


def _add_part(
    message: inference_pb2.ChatMessage, part: TextPart | ImagePart | VideoPart, field: str, limits: LimitsSection
) -> RemoteMedia | None:
    added = message.parts.add()
    if isinstance(part, TextPart):
        added.text = part.text
        return None
    if isinstance(part, ImagePart):
        added.image.SetInParent()
        return fill_image(added.image, part.image_url.url, f"{field}.image_url.url", limits)
    added.video.SetInParent()
    rate = part.video_url.frames_per_second or 0.0
    return fill_video(added.video, part.video_url.url, rate, f"{field}.video_url.url", limits)


def _sampling(chat: ChatCompletionRequest) -> common_pb2.SamplingParameters:
    sampling = common_pb2.SamplingParameters()
    for name in _SAME_NAMES:
        value = getattr(chat, name)
        if value is not None:
            setattr(sampling, name, value)
    max_tokens = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    if max_tokens is not None:
        sampling.max_tokens = max_tokens
    if chat.top_k is not None:
        sampling.top_k = max(chat.top_k, 0)
    if chat.seed is not None:
        sampling.seed = chat.seed % 2**64
    sampling.stop.extend([chat.stop] if isinstance(chat.stop, str) else chat.stop or ())
    sampling.stop_token_ids.extend(chat.stop_token_ids or ())
    _set_logprobs(sampling, chat)
    for token_id, bias in (chat.logit_bias or {}).items():
        if not (token_id.isascii() and token_id.isdecimal() and len(token_id) <= 10 and int(token_id) <= UINT32_MAX):
            field = "logit_bias"
            raise InvalidRequest(f"{field} has the key {token_id[:40]!r}, expected the id of a token", field=field)
        sampling.logit_bias[int(token_id)] = bias
    constraint = _constraint(chat)
    if constraint is not None:
        sampling.constraint.CopyFrom(constraint)
    return sampling


def _set_logprobs(sampling: common_pb2.SamplingParameters, chat: ChatCompletionRequest) -> None:
    if chat.logprobs:
        sampling.logprobs = chat.top_logprobs or 0
    elif chat.top_logprobs:
        raise InvalidRequest("top_logprobs goes with logprobs: true", field="top_logprobs")


def _constraint(chat: ChatCompletionRequest) -> common_pb2.Constraint | None:
    """The one form that the answer is to have. Raises InvalidRequest for two."""
    forms = dict(_forms(chat))
    if len(forms) > 1:
        raise InvalidRequest(
            f"{' and '.join(forms)} each ask for a form of the answer, expected one of them", field=list(forms)[-1]
        )
    return next(iter(forms.values()), None)


def _forms(chat: ChatCompletionRequest) -> Iterator[tuple[str, common_pb2.Constraint]]:
    if isinstance(chat.response_format, JsonObjectFormat):
        yield "response_format", common_pb2.Constraint(json_object=True)
    if isinstance(chat.response_format, JsonSchemaFormat):
        yield "response_format", _schema(chat.response_format.json_schema.schema_)
    if chat.guided_json is not None:
        yield "guided_json", _schema(chat.guided_json)
    if chat.guided_regex is not None:
        yield "guided_regex", common_pb2.Constraint(regex=chat.guided_regex)
    if chat.guided_choice is not None:
        yield "guided_choice", _choices(chat.guided_choice)
    outputs = chat.structured_outputs
    if outputs is None:
        return
    if outputs.json_ is not None:
        yield "structured_outputs.json", _schema(outputs.json_)
    if outputs.regex is not None:
        yield "structured_outputs.regex", common_pb2.Constraint(regex=outputs.regex)
    if outputs.choice is not None:
        yield "structured_outputs.choice", _choices(outputs.choice)
    if outputs.json_object:
        yield "structured_outputs.json_object", common_pb2.Constraint(json_object=True)


def _schema(schema: dict[str, Any] | str) -> common_pb2.Constraint:
    return common_pb2.Constraint(json_schema=schema if isinstance(schema, str) else json.dumps(schema))


def _choices(texts: list[str]) -> common_pb2.Constraint:
    return common_pb2.Constraint(choices=common_pb2.Constraint.Choices(texts=texts))
