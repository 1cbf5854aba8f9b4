"""The spans of an LLM actor's work, from the times that its answers tell as well."""

from __future__ import annotations

import time

from llm_service.sequence import Sequence
from triptych.telemetry.request_scope import note_span
from triptych.transport.fetcher import FetchedTensor


def note_embedding_transfer(fetched: FetchedTensor) -> None:
    """A picture's embedding came this moment; the wait for its producer is not part of the span."""
    now_s = time.monotonic()
    note_span(
        "embedding_transfer",
        now_s - fetched.seconds,
        now_s,
        lane=fetched.lane,
        num_bytes=fetched.tensor.nbytes,
        wait_s=fetched.wait_s,
    )


def note_kv_transfer(lane: str, offered_s: float, ended_s: float, num_bytes: int) -> None:
    """A prompt's pages are here. offered_s: the last of them were offered; num_bytes: of all."""
    note_span("kv_transfer", offered_s, ended_s, lane=lane, num_bytes=num_bytes)


def note_prefill(sequence: Sequence) -> None:
    """The prompt was computed."""
    note_span("prefill_queue", sequence.added_s, sequence.started_s)
    note_span(
        "prefill",
        sequence.started_s,
        sequence.first_token_s,
        num_tokens=sequence.prompt.num_tokens,
        num_cached_tokens=sequence.num_cached_prompt_tokens,
    )


def note_decode(begun_s: float, decode_s: float, num_tokens: int) -> None:
    """All answers were generated."""
    note_span("decode", begun_s, begun_s + decode_s, num_tokens=num_tokens)
