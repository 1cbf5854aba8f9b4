"""Role: what an LLM actor does."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The values are the names of the sections under `stages`."""

    PREFILL = "prefill"
    DECODE = "decode"
    PREFILL_DECODE = "prefill_decode"
