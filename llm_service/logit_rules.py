"""LogitRules: what a request asks for that changes logits: biases, tokens that must not come, a form, penalties."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from llm_service.answer_form import without
from llm_service.logprobs import StepLogprobs
from llm_service.sequence import Sequence
from llm_service.token_counts import TokenCounts
from llm_service.upload import Array

_BITS = 32


class StopTokens:
    """Which tokens end a sequence."""

    def __init__(self, eos_token_ids: Seq[int]) -> None:
        self.eos_token_ids = tuple(eos_token_ids)

    def stop_token_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """The tokens that end this sequence."""
        sampling = sequence.sampling
        return sampling.stop_token_ids if sampling.ignore_eos else (*sampling.stop_token_ids, *self.eos_token_ids)


class LogitRules(StopTokens):
    """`plan` on the host, `apply` where the logits are, then `finish` with what was chosen: one step after the other.

    A plan is arrays alone, so that it can travel with everything else that a step brings to the device. Rows count
    among the sequences that were planned for.
    """

    def __init__(self, eos_token_ids: Seq[int]) -> None:
        super().__init__(eos_token_ids)
        self._counts = TokenCounts()
        self._wanting: list[tuple[int, Sequence]] = []
        self._logprobs: StepLogprobs | None = None

    def plan(self, sequences: Seq[Sequence]) -> dict[str, Array]:
        """Fields that `apply` and `finish` need on the device; only those that some row has a use for.

        Raises InvalidRequest where a form can't go on.
        """
        self._wanting = []
        if not any(sequence.is_special or self._banned(sequence) for sequence in sequences):
            return self._counts.plan([], [])
        fields: dict[str, Array] = {}
        rows = range(len(sequences))
        if formed := [row for row in rows if sequences[row].form is not None]:
            fields["form_rows"] = np.array(formed, np.int64)
            fields["form_masks"] = np.stack([self._mask(sequences[row]) for row in formed])
        if banned := [(row, t) for row in rows if sequences[row].form is None for t in self._banned(sequences[row])]:
            fields["banned"] = np.array(banned, np.int64).T.copy()
        if biases := [(row, *bias) for row in rows for bias in sequences[row].sampling.logit_bias]:
            fields["bias_at"] = np.array([bias[:2] for bias in biases], np.int64).T.copy()
            fields["biases"] = np.array([bias[2] for bias in biases], np.float32)
        penalized = [row for row in rows if sequences[row].sampling.has_penalties]
        fields |= self._counts.plan(penalized, [sequences[row] for row in penalized])
        self._wanting = [(row, sequences[row]) for row in rows if sequences[row].sampling.logprobs is not None]
        if self._wanting:
            fields["logprob_rows"] = np.array([row for row, _ in self._wanting], np.int64)
        return fields

    def apply(self, logits: Tensor, fields: Mapping[str, Tensor]) -> Tensor | None:
        """Changes logits [N, vocab], float32, for what is planned. Returns what `finish` wants to have back."""
        raw = logits.index_select(0, fields["logprob_rows"]) if "logprob_rows" in fields else None
        if "form_rows" in fields:
            _forbid(logits, fields["form_rows"], fields["form_masks"])
        if "biases" in fields:
            logits.index_put_(tuple(fields["bias_at"]), fields["biases"], accumulate=True)
        if "banned" in fields:
            logits.index_put_(tuple(fields["banned"]), logits.new_full((), -torch.inf))
        if "penalty_rows" in fields:
            self._counts.penalize(logits, fields)
        return raw

    def finish(self, tokens: Tensor, raw: Tensor | None, fields: Mapping[str, Tensor]) -> None:
        """tokens [N], int64, were chosen."""
        if "penalty_rows" in fields:
            self._counts.count(tokens, fields)
        if raw is not None:
            chosen = tokens.index_select(0, fields["logprob_rows"])
            self._logprobs = StepLogprobs.of([sequence for _, sequence in self._wanting], raw, chosen)

    def take_logprobs(self) -> StepLogprobs | None:
        """Those of the step that was finished last; once."""
        logprobs, self._logprobs = self._logprobs, None
        return logprobs

    def _banned(self, sequence: Sequence) -> tuple[int, ...]:
        is_too_early = sequence.num_tokens < sequence.num_tokens_before_end
        return self.stop_token_ids(sequence) if is_too_early else ()

    def _mask(self, sequence: Sequence) -> Array:
        """Where a form leaves nothing but the end, the answer ends, whatever min_tokens and ignore_eos say."""
        assert sequence.form is not None
        banned = {*self._banned(sequence), *(self.eos_token_ids if sequence.sampling.ignore_eos else ())}
        return without(sequence.form.mask(), banned)


def _forbid(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    """masks int32 [N, words]: a bit for each token of the vocabulary that may come."""
    bits = torch.arange(_BITS, dtype=torch.int32, device=logits.device)
    is_allowed = ((masks[:, :, None] >> bits) & 1).flatten(1)[:, : logits.shape[1]].bool()
    chosen = logits.index_select(0, rows)
    logits.index_copy_(0, rows, chosen.masked_fill(~is_allowed, -torch.inf))
