"""FusedSampler: the next token of every row on the device, by a kernel that neither sorts nor waits for the host."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from llm_service.logit_rules import LogitRules
from llm_service.sampler import keep_top
from llm_service.sequence import Sequence
from llm_service.upload import Array, FieldSpec
from triptych.kernels.sample import sample


class FusedSampler(LogitRules):
    """Draws by Gumbel noise of (seed, position, token), so a draw depends on neither batch nor route.

    Rows with top-k, top-p or rules for their logits are sampled a second time, by themselves: `sample` is the same for
    every step, and can be part of a captured graph. `special` and `resample` belong to one step, in that order.
    """

    @staticmethod
    def specs(num_rows: int) -> dict[str, FieldSpec]:
        """The fields of the upload that `fill` writes."""
        return {
            "temperatures": ((num_rows,), torch.float32),
            "seeds": ((num_rows,), torch.int64),
            "sample_positions": ((num_rows,), torch.int64),
        }

    @staticmethod
    def fill(sequences: Seq[Sequence], host: Mapping[str, Array]) -> None:
        """Rows behind the sequences are padding, and greedy."""
        num = len(sequences)
        host["temperatures"][:num] = [sequence.sampling.temperature for sequence in sequences]
        host["temperatures"][num:] = 0.0
        host["seeds"][:num] = np.array([sequence.sampling.seed for sequence in sequences], np.uint64).view(np.int64)
        host["sample_positions"][:num] = [sequence.num_tokens for sequence in sequences]

    def special(self, sequences: Seq[Sequence]) -> dict[str, Array]:
        """What `resample` needs for those rows that `sample` does not serve; empty when there are none."""
        rows = [
            row
            for row, sequence in enumerate(sequences)
            if sequence.is_special or len(sequence.token_ids) < sequence.num_tokens_before_end
        ]
        if not rows:
            return {}
        chosen = [sequences[row] for row in rows]
        fields = {"special_rows": np.array(rows, np.int64), **self.plan(chosen)}
        if any(sequence.sampling.is_cut for sequence in chosen):
            fields["top_k"] = np.array([sequence.sampling.top_k for sequence in chosen], np.int64)
            fields["top_p"] = np.array([sequence.sampling.top_p for sequence in chosen], np.float32)
        return fields

    @staticmethod
    def sample(logits: Tensor, fields: Mapping[str, Tensor], out: Tensor, *, pdl: bool = False) -> None:
        """One token for each row of logits [N, vocab] to out [N], int64."""
        sample(logits, fields["temperatures"], fields["seeds"], fields["sample_positions"], out=out, pdl=pdl)

    def resample(
        self, logits: Tensor, fields: Mapping[str, Tensor], special: Mapping[str, Tensor], out: Tensor
    ) -> None:
        """Samples the special rows again, with what they ask for."""
        rows = special["special_rows"]
        chosen = logits.index_select(0, rows).float()
        raw = self.apply(chosen, special)
        temperatures = fields["temperatures"].index_select(0, rows)
        if "top_k" in special:
            scale = torch.where(temperatures > 0, temperatures, 1.0)[:, None]
            scaled = (chosen - chosen.amax(-1, keepdim=True)) / scale
            kept = keep_top(scaled, special["top_k"], special["top_p"])
            chosen = chosen.masked_fill(kept == -torch.inf, -torch.inf)
        seeds, positions = (fields[name].index_select(0, rows) for name in ("seeds", "sample_positions"))
        tokens = sample(chosen, temperatures, seeds, positions)
        out.index_copy_(0, rows, tokens)
        self.finish(tokens, raw, special)
