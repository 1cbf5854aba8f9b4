"""Sizes of steps with prompts that are captured as graphs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Sequences with more than one new token in a captured step.
MAX_CHUNKS = 32
# A longer step keeps the device busy for longer than the slowest host seen needs to launch it kernel by kernel.
MAX_PROMPT_TOKENS = 3_072
# (largest bucket, distance to the next): what is filled up costs as much as tokens do.
_ALONE_STEPS = ((128, 64), (1_536, 128), (2_048, 256), (MAX_PROMPT_TOKENS, 512))
_BESIDE_DECODES_STEPS = ((128, 64), (512, 128), (MAX_PROMPT_TOKENS, 256))
_NUMS_DECODES = (16, 64, 128, 256)


@dataclass(frozen=True)
class PromptBucket:
    """Rows for so many decodes, and behind them rows for so many tokens of prompts."""

    num_decodes: int
    num_prompt_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + self.num_prompt_tokens

    def holds(self, num_decodes: int, num_prompt_tokens: int) -> bool:
        return num_decodes <= self.num_decodes and num_prompt_tokens <= self.num_prompt_tokens


def prompt_buckets(max_step_tokens: int, mixed_prefill_tokens: int, max_decodes: int) -> list[PromptBucket]:
    """Prompts alone, up to `max_step_tokens` of them, and beside decodes, up to `mixed_prefill_tokens`."""
    alone = [PromptBucket(0, size) for size in _sizes(_ALONE_STEPS, max_step_tokens)]
    nums_decodes = sorted({min(num, max_decodes) for num in _NUMS_DECODES})
    sizes = _sizes(_BESIDE_DECODES_STEPS, min(mixed_prefill_tokens, max_step_tokens))
    return alone + [PromptBucket(num, size) for num in nums_decodes for size in sizes]


def smallest(buckets: Iterable[PromptBucket], num_decodes: int, num_prompt_tokens: int) -> PromptBucket | None:
    """The one that fills up the least; None when the step is too large for all of them."""
    fitting = [bucket for bucket in buckets if bucket.holds(num_decodes, num_prompt_tokens)]
    return min(fitting, key=lambda bucket: bucket.num_tokens, default=None)


def _sizes(steps: tuple[tuple[int, int], ...], largest: int) -> list[int]:
    sizes: list[int] = []
    for end, step in steps:
        first = sizes[-1] + step if sizes else step
        sizes += range(first, min(end, largest) + 1, step)
    return sizes
