"""Constraint: the form that a request wants its answer to have, and its grammar for the library that enforces it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.v1 import common_pb2

FIELD = "sampling.constraint"
# JSON allows any amount of whitespace; a model that has lost its way would go on with it until max_tokens.
_JSON_WHITESPACE = r"[ \n\r\t]{0,20}"
_MAX_MESSAGE_CHARACTERS = 400
# What the library says where nothing may follow, not even the end; and what its own state begins with in messages.
_NOTHING_FITS, _STATE = "NoExtensionBias", "<state>"


class Form(StrEnum):
    """The values are the names of the proto's fields."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    JSON_OBJECT = "json_object"
    CHOICES = "choices"


@dataclass(frozen=True)
class Constraint:
    """What an answer must look like. texts: the schema, the regular expression or the choices; none for JSON_OBJECT."""

    form: Form
    texts: tuple[str, ...] = ()

    @property
    def field(self) -> str:
        return f"{FIELD}.{self.form}"

    @property
    def grammar(self) -> str:
        """In llguidance's own notation. Says nothing about whether it is valid; see `check_grammar`."""
        # Slow to load, and few requests need it.
        from llguidance import LLMatcher

        match self.form:
            case Form.REGEX:
                return LLMatcher.grammar_from_regex(self.texts[0])
            case Form.CHOICES:
                return LLMatcher.grammar_from_regex("|".join(f"(?:{_literal(text)})" for text in self.texts))
            case _:
                schema = self.texts[0] if self.texts else '{"type": "object"}'
                try:
                    return LLMatcher.grammar_from_json_schema(
                        schema, overrides={"whitespace_flexible": True, "whitespace_pattern": _JSON_WHITESPACE}
                    )
                except ValueError as error:
                    raise self.refused(str(error)) from None

    @classmethod
    def from_proto(cls, message: common_pb2.SamplingParameters, limits: LimitsSection) -> Constraint | None:
        """None when the request has none. Raises InvalidRequest or RequestTooLarge, naming the form's field."""
        if not message.HasField("constraint"):
            return None
        form = message.constraint.WhichOneof("form")
        if form is None or (form == "json_object" and not message.constraint.json_object):
            field = FIELD if form is None else f"{FIELD}.{form}"
            raise InvalidRequest(f"{field} asks for no form, expected one of {', '.join(Form)}", field=field)
        texts: tuple[str, ...] = ()
        if form == "choices":
            texts = tuple(message.constraint.choices.texts)
        elif form != "json_object":
            texts = (getattr(message.constraint, form),)
        constraint = cls(Form(form), texts)
        constraint.check(limits)
        return constraint

    def check(self, limits: LimitsSection) -> None:
        """Raises InvalidRequest where there is no text, RequestTooLarge where there is too much."""
        if self.form is not Form.JSON_OBJECT and not all(self.texts or [""]):
            raise InvalidRequest(f"{self.field} is empty or holds an empty text, expected text", field=self.field)
        num_bytes = sum(len(text.encode()) for text in self.texts)
        if num_bytes > limits.max_constraint_bytes:
            raise RequestTooLarge(
                f"{self.field} has {num_bytes} bytes, at most {limits.max_constraint_bytes} are allowed "
                "(limits.max_constraint_bytes)",
                field=self.field,
            )

    def check_grammar(self) -> None:
        """Raises InvalidRequest for one that can't be used: not for an event loop, it may take 100 ms."""
        from llguidance import LLMatcher

        is_wrong, messages = LLMatcher.validate_grammar_with_warnings(self.grammar)
        if is_wrong:
            raise self.refused(messages[0])

    def refused(self, reason: str) -> InvalidRequest:
        reason = " ".join(reason.partition(_STATE)[0].split())[:_MAX_MESSAGE_CHARACTERS]
        if reason == _NOTHING_FITS:
            reason = "there is no text of this form"
        return InvalidRequest(f"{self.field} can't be used: {reason}", field=self.field)

    def to_proto(self) -> common_pb2.Constraint:
        match self.form:
            case Form.JSON_SCHEMA:
                return common_pb2.Constraint(json_schema=self.texts[0])
            case Form.REGEX:
                return common_pb2.Constraint(regex=self.texts[0])
            case Form.JSON_OBJECT:
                return common_pb2.Constraint(json_object=True)
            case Form.CHOICES:
                return common_pb2.Constraint(choices=common_pb2.Constraint.Choices(texts=self.texts))


def _literal(text: str) -> str:
    """A regular expression that matches `text` alone."""
    return "".join(f"\\x{{{ord(character):x}}}" if not character.isalnum() else character for character in text)
