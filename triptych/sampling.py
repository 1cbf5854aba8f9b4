"""SamplingParameters: how the next token of a request is chosen, checked once at the door."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from triptych.config import DefaultsSection, LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.v1 import common_pb2

MAX_TEMPERATURE = 100.0
MAX_STOP_TOKEN_IDS = 1_024
SEED_BITS = 64


@dataclass(frozen=True)
class SamplingParameters:
    """Every field has a value: defaults were filled in, and the seed was drawn where the request named none."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @classmethod
    def from_proto(
        cls, message: common_pb2.SamplingParameters, defaults: DefaultsSection, limits: LimitsSection
    ) -> SamplingParameters:
        """Raises InvalidRequest, its field one of `sampling.*`, for a value that is no number or out of its range."""
        max_tokens = message.max_tokens if message.HasField("max_tokens") else defaults.max_tokens
        parameters = cls(
            max_tokens=max_tokens,
            temperature=message.temperature if message.HasField("temperature") else defaults.temperature,
            top_p=message.top_p if message.HasField("top_p") else 1.0,
            top_k=message.top_k if message.HasField("top_k") else 0,
            seed=message.seed if message.HasField("seed") else secrets.randbits(SEED_BITS),
            stop=tuple(message.stop),
            stop_token_ids=tuple(message.stop_token_ids),
            ignore_eos=message.ignore_eos,
            min_tokens=message.min_tokens,
        )
        parameters.check(limits)
        return parameters

    def check(self, limits: LimitsSection) -> None:
        """Raises InvalidRequest for the first field out of its range."""
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= MAX_TEMPERATURE):
            raise _out_of_range("temperature", self.temperature, f"a number from 0 (greedy) to {MAX_TEMPERATURE:g}")
        if not (math.isfinite(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise _out_of_range("top_p", self.top_p, "a number above 0 and at most 1")
        if self.max_tokens < 1:
            raise _out_of_range("max_tokens", self.max_tokens, "at least 1")
        if self.max_tokens > limits.max_new_tokens:
            raise RequestTooLarge(
                f"sampling.max_tokens is {self.max_tokens}, at most {limits.max_new_tokens} are allowed "
                "(limits.max_new_tokens)",
                field="sampling.max_tokens",
            )
        if self.min_tokens > self.max_tokens:
            raise _out_of_range("min_tokens", self.min_tokens, f"at most sampling.max_tokens ({self.max_tokens})")
        if len(self.stop) > limits.max_stop_strings:
            raise RequestTooLarge(
                f"sampling.stop has {len(self.stop)} strings, at most {limits.max_stop_strings} are allowed "
                "(limits.max_stop_strings)",
                field="sampling.stop",
            )
        if not all(self.stop):
            raise InvalidRequest("sampling.stop holds an empty string, expected text", field="sampling.stop")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise RequestTooLarge(
                f"sampling.stop_token_ids has {len(self.stop_token_ids)} ids, at most {MAX_STOP_TOKEN_IDS} are allowed",
                field="sampling.stop_token_ids",
            )

    def to_proto(self) -> common_pb2.SamplingParameters:
        """The same parameters with nothing left to a default: what the stages send each other."""
        return common_pb2.SamplingParameters(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
        )


def _out_of_range(name: str, value: float, expected: str) -> InvalidRequest:
    return InvalidRequest(f"sampling.{name} is {value}, expected {expected}", field=f"sampling.{name}")
