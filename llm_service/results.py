"""What the stage answers to a prefill and to a decode."""

from __future__ import annotations

from dataclasses import dataclass

from llm_service.embeddings import Embeddings
from llm_service.kv_transfer import KvArrival
from llm_service.logprobs import TokenLogprob
from llm_service.sequence import FinishReason, Sequence


@dataclass(frozen=True)
class PrefillResult:
    """Times in seconds, without those in which the prompt waited for pictures. finish_reason: set when the first token
    already ended the request.
    """

    first_token_id: int
    finish_reason: FinishReason | None
    num_cached_prompt_tokens: int
    embeddings: Embeddings
    queue_s: float
    prefill_s: float
    first_logprob: TokenLogprob | None = None

    @classmethod
    def of(
        cls,
        sequence: Sequence,
        embeddings: Embeddings,
        finish_reason: FinishReason | None,
        first_logprob: TokenLogprob | None = None,
    ) -> PrefillResult:
        return cls(
            first_token_id=sequence.token_ids[sequence.prompt.num_tokens],
            finish_reason=finish_reason,
            num_cached_prompt_tokens=sequence.num_cached_prompt_tokens,
            embeddings=embeddings,
            queue_s=sequence.started_s - sequence.added_s,
            prefill_s=sequence.first_token_s - sequence.started_s - sequence.paused_s,
            first_logprob=first_logprob,
        )


@dataclass(frozen=True)
class DecodeResult:
    """finish_reason: of the first answer. num_tokens: those generated here, of all answers. prefill: where it was done
    here; kv: where the pages came from elsewhere."""

    finish_reason: FinishReason
    num_tokens: int
    prefill: PrefillResult | None = None
    kv: KvArrival | None = None
    decode_s: float = 0.0
    num_preemptions: int = 0
