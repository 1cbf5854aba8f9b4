"""What form an answer is to have: for `response_format=` of the clients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from triptych.errors import InvalidRequest
from triptych.v1 import common_pb2

# What the functions here return, or a mapping as the OpenAI API has it.
ResponseFormat = common_pb2.Constraint | Mapping[str, Any]


def json_schema(schema: Mapping[str, Any] | str) -> common_pb2.Constraint:
    """JSON of this schema: a mapping, or JSON text. `pydantic_model.model_json_schema()` is one."""
    return common_pb2.Constraint(json_schema=schema if isinstance(schema, str) else json.dumps(schema))


def json_object() -> common_pb2.Constraint:
    """Any JSON object."""
    return common_pb2.Constraint(json_object=True)


def regex(pattern: str) -> common_pb2.Constraint:
    """Text that the regular expression matches from end to end."""
    return common_pb2.Constraint(regex=pattern)


def one_of(*texts: str) -> common_pb2.Constraint:
    """One of these texts."""
    return common_pb2.Constraint(choices=common_pb2.Constraint.Choices(texts=texts))


def to_constraint(response_format: ResponseFormat) -> common_pb2.Constraint | None:
    """None for {"type": "text"}: no form. Raises InvalidRequest for what is no response format."""
    if isinstance(response_format, common_pb2.Constraint):
        return response_format
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return json_object()
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return json_schema(schema)
    raise InvalidRequest(
        f"response_format is {response_format!r:.80}, expected json_schema(...), json_object(), regex(...), "
        'one_of(...) or a mapping with the type "text", "json_object" or "json_schema"',
        field="sampling.constraint",
    )
