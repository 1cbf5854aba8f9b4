"""Errors as OpenAI's clients read them: {"error": {message, type, param, code}} with the status of the error table."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic import ValidationError

from router.api.answering import outcome_of
from triptych.errors import InvalidRequest, Overloaded, TriptychError, http_status

AUTHENTICATE = ("WWW-Authenticate", "Bearer")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_MAX_ECHO = 200

# Fields of the protos -> fields of this API, in messages and as names.
_RENAMES = (
    (re.compile(r"messages\[(\d+)\]\.parts"), r"messages[\1].content"),
    (re.compile(r"(content\[\d+\])\.image(?:\.data)?\b"), r"\1.image_url.url"),
    (re.compile(r"(content\[\d+\])\.video(?:\.(?:data|frames)(?:\.frames)?)?\b"), r"\1.video_url.url"),
    (re.compile(r"\bsampling\.constraint\.json_schema\b"), "response_format.json_schema.schema"),
    (re.compile(r"\bsampling\.constraint\b"), "structured_outputs"),
    (re.compile(r"\bsampling\.logprobs\b"), "top_logprobs"),
    (re.compile(r"\bsampling\."), ""),
    (re.compile(r"^request_id\b"), "X-Request-Id"),
)


def error_body(error: TriptychError) -> dict[str, Any]:
    """`param` is the field at fault, `code` the error's class as in the metrics."""
    kind = _TYPES.get(http_status(error), "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.field or None, "code": outcome_of(error)}}


def error_headers(error: TriptychError) -> list[tuple[str, str]]:
    """Retry-After in whole seconds where there is advice, and the finer header that OpenAI's clients look at first."""
    if isinstance(error, Overloaded):
        return [
            ("Retry-After", str(max(1, math.ceil(error.retry_after_s)))),
            ("retry-after-ms", str(max(1, math.ceil(error.retry_after_s * 1_000)))),
        ]
    return [AUTHENTICATE] if http_status(error) == 401 else []


def in_http_terms(error: TriptychError) -> TriptychError:
    """The same error with the fields of this API in the place of the protos'."""
    if not isinstance(error, InvalidRequest):
        return error
    return type(error)(_renamed(error.message), field=_renamed(error.field))


def invalid_body(error: ValidationError) -> InvalidRequest:
    """The first thing that is wrong with a body, by its path."""
    item = error.errors(include_url=False, include_context=False)[0]
    field = _path(item["loc"])
    if item["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {item['msg'].removeprefix('Invalid JSON: ')}")
    if item["type"] == "extra_forbidden":
        return InvalidRequest(f"{field}: unknown field", field=field)
    if item["type"] == "missing":
        return InvalidRequest(f"{field} is missing", field=field)
    found = _brief(item["input"])
    expected = item["msg"].removeprefix("Input should be ").removeprefix("Input tag ")
    return InvalidRequest(f"{field or 'the body'} is {found}, expected {expected}", field=field)


def _brief(value: Any) -> str:
    """A value as it is told back: its beginning, and of lists and objects only what they are."""
    if isinstance(value, str):
        return repr(value[:_MAX_ECHO])
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"{value!r:.{_MAX_ECHO}}"


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].image_url.url`: as a client writes it, without the names of our alternatives."""
    path = ""
    previous: int | str = ""
    for part in location:
        is_alternative = previous == "content" and part in ("text", "parts")
        is_alternative |= isinstance(previous, int) and part in ("text", "image_url", "video_url")
        is_alternative |= previous == "response_format"
        is_alternative |= isinstance(part, str) and not re.fullmatch(r"\w+", part)
        previous = "" if is_alternative else part
        if is_alternative:
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path[:_MAX_ECHO]


def _renamed(text: str) -> str:
    for pattern, replacement in _RENAMES:
        text = pattern.sub(replacement, text)
    return text
