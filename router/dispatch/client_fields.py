"""Actors name what is wrong in their own requests (`items[2].media.data`); a client knows the fields of its own."""

from __future__ import annotations

from collections.abc import Mapping

from triptych.errors import InvalidRequest, TriptychError


def in_client_terms(error: TriptychError, fields: Mapping[str, str]) -> TriptychError:
    """The same error with every stage field of `fields` replaced by the client's, in its field and in its message.

    Errors other than InvalidRequest say nothing about the client's fields and stay as they are.
    """
    if not isinstance(error, InvalidRequest):
        return error
    message, field = error.message, error.field
    for stage_field, client_field in fields.items():
        message = message.replace(stage_field, client_field)
        field = field.replace(stage_field, client_field)
    return type(error)(message, field=field)
