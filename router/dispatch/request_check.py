"""Checks on a client's request that need neither tokenizer nor media: ids, counts, roles, sizes of text."""

from __future__ import annotations

import re

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest, NotFound, RequestTooLarge
from triptych.models.qwen2_5_vl.prompt import ROLES
from triptych.v1 import inference_pb2

MAX_REQUEST_ID_LENGTH = 100
# Stop strings are looked for in every character of the answer, on the router's event loop.
MAX_STOP_CHARACTERS = 1_024

_REQUEST_ID = re.compile(rf"[A-Za-z0-9_.:-]{{0,{MAX_REQUEST_ID_LENGTH}}}")


def check_request(request: inference_pb2.GenerateRequest, model_name: str, limits: LimitsSection) -> None:
    """Raises InvalidRequest, RequestTooLarge or NotFound (another model's name) with the field at fault."""
    if not _REQUEST_ID.fullmatch(request.request_id):
        raise InvalidRequest(
            f"request_id is {request.request_id[:40]!r}, "
            f"expected at most {MAX_REQUEST_ID_LENGTH} letters, digits and any of _ . : -",
            field="request_id",
        )
    if request.model and request.model != model_name:
        raise NotFound(f"model {request.model[:80]!r} is not served here, {model_name!r} is", field="model")
    _check_messages(request, limits)
    _check_text(request, limits)
    for index, stop in enumerate(request.sampling.stop):
        if len(stop) > MAX_STOP_CHARACTERS:
            field = f"sampling.stop[{index}]"
            raise RequestTooLarge(f"{field} has {len(stop)} characters, at most {MAX_STOP_CHARACTERS}", field=field)


def _check_messages(request: inference_pb2.GenerateRequest, limits: LimitsSection) -> None:
    if not request.messages:
        raise InvalidRequest("messages is empty, expected at least one message", field="messages")
    if len(request.messages) > limits.max_messages:
        raise RequestTooLarge(
            f"messages has {len(request.messages)} entries, expected at most {limits.max_messages} "
            "(limits.max_messages)",
            field="messages",
        )
    num_media = 0
    for index, message in enumerate(request.messages):
        if message.role not in ROLES:
            field = f"messages[{index}].role"
            raise InvalidRequest(f"{field} is {message.role[:40]!r}, expected one of {', '.join(ROLES)}", field=field)
        if not message.parts:
            field = f"messages[{index}].parts"
            raise InvalidRequest(f"{field} is empty, expected text, a picture or a video", field=field)
        for number, part in enumerate(message.parts):
            kind = part.WhichOneof("part")
            if kind is None:
                field = f"messages[{index}].parts[{number}]"
                raise InvalidRequest(f"{field} is empty, expected text, image or video", field=field)
            num_media += kind != "text"
    if num_media > limits.max_media_items:
        raise RequestTooLarge(
            f"messages have {num_media} pictures and videos, expected at most {limits.max_media_items} "
            "(limits.max_media_items)",
            field="messages",
        )


def _check_text(request: inference_pb2.GenerateRequest, limits: LimitsSection) -> None:
    num_bytes = sum(len(part.text.encode()) for message in request.messages for part in message.parts)
    if num_bytes > limits.max_text_bytes:
        raise RequestTooLarge(
            f"messages have {num_bytes} bytes of text, expected at most {limits.max_text_bytes} "
            "(limits.max_text_bytes)",
            field="messages",
        )
