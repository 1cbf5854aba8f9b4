"""Log probabilities of chosen tokens and of the likeliest ones, as the model's own distribution has them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_service.sequence import Sequence
from triptych.v1 import common_pb2


@dataclass(frozen=True)
class TokenLogprob:
    """Of one chosen token. top: pairs of token id and log probability, likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    def to_proto(self) -> common_pb2.TokenLogprob:
        top = [common_pb2.TopLogprob(token_id=token, logprob=value) for token, value in self.top]
        return common_pb2.TokenLogprob(token_id=self.token_id, logprob=self.logprob, top=top)


@dataclass(frozen=True)
class StepLogprobs:
    """Those of one step: for each sequence the chosen token, then the likeliest. ids, values: [N, 1 + most wanted]."""

    sequences: tuple[Sequence, ...]
    ids: Tensor
    values: Tensor

    @classmethod
    def of(cls, sequences: Seq[Sequence], logits: Tensor, chosen: Tensor) -> StepLogprobs:
        """logits [N, vocab], float32, as the model gave them; chosen [N], int64."""
        most = max(sequence.sampling.logprobs or 0 for sequence in sequences)
        values, ids = logits.topk(min(most, logits.shape[1]), dim=-1)
        ids = torch.cat([chosen[:, None], ids], dim=1)
        values = torch.cat([logits.gather(1, chosen[:, None]), values], dim=1)
        return cls(tuple(sequences), ids, values - logits.logsumexp(-1, keepdim=True))

    def to_host(self) -> StepLogprobs:
        """The same in host memory, as soon as the device has come so far."""
        if self.ids.device.type == "cpu":
            return self
        ids, values = (
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
            for tensor in (self.ids, self.values)
        )
        return StepLogprobs(self.sequences, ids, values)

    def read(self) -> dict[Sequence, TokenLogprob]:
        rows = zip(self.sequences, self.ids.tolist(), self.values.tolist(), strict=True)
        return {sequence: _token_logprob(sequence, ids, values) for sequence, ids, values in rows}


def _token_logprob(sequence: Sequence, ids: list[int], values: list[float]) -> TokenLogprob:
    num_top = sequence.sampling.logprobs or 0
    top = tuple(zip(ids[1 : 1 + num_top], values[1 : 1 + num_top], strict=True))
    return TokenLogprob(ids[0], values[0], top)
