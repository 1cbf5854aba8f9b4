"""SamplingParameters: how the next token of a request is chosen, checked once at the door."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace

from triptych.config import DefaultsSection, LimitsSection
from triptych.constraint import Constraint
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.v1 import common_pb2

MAX_TEMPERATURE = 100.0
MAX_STOP_TOKEN_IDS = 1_024
SEED_BITS = 64
MAX_PENALTY = 2.0
# Logits are divided by it: much less than the lower one, and they are no finite numbers any more.
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
MAX_LOGIT_BIAS = 100.0


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
    n: int = 1
    # None: not asked for; else how many of the likeliest tokens are told beside each chosen one.
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    # Pairs of token id and what is added to its logit, by id.
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    @property
    def is_cut(self) -> bool:
        """Only some of the tokens may be drawn."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0)

    @property
    def is_special(self) -> bool:
        """More is asked for than to choose by temperature. (Minimum lengths are over after the first tokens.)"""
        is_changed = self.has_penalties or bool(self.logit_bias) or self.constraint is not None
        return is_changed or self.is_cut or self.logprobs is not None

    def of_choice(self, index: int) -> SamplingParameters:
        """Those of one of the n answers, as a request of its own would have them."""
        return replace(self, n=1, seed=choice_seed(self.seed, index))

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
            n=message.n if message.HasField("n") else 1,
            logprobs=message.logprobs if message.HasField("logprobs") else None,
            presence_penalty=message.presence_penalty,
            frequency_penalty=message.frequency_penalty,
            repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
            logit_bias=_biases(message, limits),
            constraint=Constraint.from_proto(message, limits),
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
        self._check_extras(limits)

    def _check_extras(self, limits: LimitsSection) -> None:
        if not 1 <= self.n <= limits.max_choices:
            raise _out_of_range("n", self.n, f"1 to {limits.max_choices} (limits.max_choices)")
        if self.logprobs is not None and self.logprobs > limits.max_logprobs:
            raise _out_of_range("logprobs", self.logprobs, f"at most {limits.max_logprobs} (limits.max_logprobs)")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not (math.isfinite(value) and abs(value) <= MAX_PENALTY):
                raise _out_of_range(name, value, f"a number from {-MAX_PENALTY:g} to {MAX_PENALTY:g}")
        penalty = self.repetition_penalty
        if not (math.isfinite(penalty) and MIN_REPETITION_PENALTY <= penalty <= MAX_REPETITION_PENALTY):
            expected = f"a number from {MIN_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g}; 1 is off"
            raise _out_of_range("repetition_penalty", penalty, expected)
        for token, bias in self.logit_bias:
            if not (math.isfinite(bias) and abs(bias) <= MAX_LOGIT_BIAS):
                raise InvalidRequest(
                    f"sampling.logit_bias[{token}] is {bias}, expected a number from {-MAX_LOGIT_BIAS:g} to "
                    f"{MAX_LOGIT_BIAS:g}",
                    field="sampling.logit_bias",
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
            n=self.n,
            logprobs=self.logprobs,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=dict(self.logit_bias),
            constraint=self.constraint.to_proto() if self.constraint is not None else None,
        )


def choice_seed(seed: int, index: int) -> int:
    """The seed of answer `index` of several: that of the request for the first, others that have nothing to do with it
    for the rest.

    SplitMix64 (Steele, Lea, Flood 2014): the numbers that a generator seeded with `seed` gives.
    """
    if index == 0:
        return seed
    mask = 2**SEED_BITS - 1
    mixed: int = (seed + index * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)


def _biases(message: common_pb2.SamplingParameters, limits: LimitsSection) -> tuple[tuple[int, float], ...]:
    if len(message.logit_bias) > limits.max_logit_biases:
        raise RequestTooLarge(
            f"sampling.logit_bias has {len(message.logit_bias)} entries, at most {limits.max_logit_biases} are allowed "
            "(limits.max_logit_biases)",
            field="sampling.logit_bias",
        )
    return tuple(sorted(message.logit_bias.items()))


def _out_of_range(name: str, value: float, expected: str) -> InvalidRequest:
    return InvalidRequest(f"sampling.{name} is {value}, expected {expected}", field=f"sampling.{name}")
