"""FusedSampler: the next token of every row on the device, by a kernel that neither sorts nor waits for the host."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from llm_service.sampler import StopTokens, keep_top
from llm_service.sequence import Sequence
from llm_service.upload import Array, FieldSpec
from triptych.kernels.sample import sample


class FusedSampler(StopTokens):
    """Draws by Gumbel noise of (seed, position, token), so a draw depends on neither batch nor route.

    Rows with top-k, top-p or tokens that must not come yet are sampled a second time, by themselves: `sample` is the
    same for every step, and can be part of a captured graph.
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
        rows = [row for row, sequence in enumerate(sequences) if _is_special(sequence)]
        if not rows:
            return {}
        banned = [
            (row, token)
            for row in rows
            if sequences[row].num_generated_tokens < sequences[row].sampling.min_tokens
            for token in self.stop_token_ids(sequences[row])
        ]
        is_cut = any(_is_cut(sequences[row]) for row in rows)
        return {
            "special_rows": np.array(rows, np.int64),
            "banned": np.array(banned, np.int64).reshape(-1, 2).T.copy(),
            "top_k": np.array([sequences[row].sampling.top_k for row in rows] if is_cut else [], np.int64),
            "top_p": np.array([sequences[row].sampling.top_p for row in rows] if is_cut else [], np.float32),
        }

    @staticmethod
    def sample(logits: Tensor, fields: Mapping[str, Tensor], out: Tensor, *, pdl: bool = False) -> None:
        """One token for each row of logits [N, vocab] to out [N], int64."""
        sample(logits, fields["temperatures"], fields["seeds"], fields["sample_positions"], out=out, pdl=pdl)

    @staticmethod
    def resample(logits: Tensor, fields: Mapping[str, Tensor], special: Mapping[str, Tensor], out: Tensor) -> None:
        """Samples the special rows again, with what they ask for. Overwrites logits."""
        rows, banned = special["special_rows"], special["banned"]
        logits.index_put_((banned[0], banned[1]), logits.new_full((), -torch.inf))
        chosen = logits.index_select(0, rows).float()
        temperatures = fields["temperatures"].index_select(0, rows)
        if special["top_k"].numel():
            scale = torch.where(temperatures > 0, temperatures, 1.0)[:, None]
            scaled = (chosen - chosen.amax(-1, keepdim=True)) / scale
            kept = keep_top(scaled, special["top_k"], special["top_p"])
            chosen = chosen.masked_fill(kept == -torch.inf, -torch.inf)
        seeds, positions = (fields[name].index_select(0, rows) for name in ("seeds", "sample_positions"))
        out.index_copy_(0, rows, sample(chosen, temperatures, seeds, positions))


def _is_cut(sequence: Sequence) -> bool:
    sampling = sequence.sampling
    return not sampling.is_greedy and (sampling.top_k > 0 or sampling.top_p < 1.0)


def _is_special(sequence: Sequence) -> bool:
    return sequence.sampling.min_tokens > sequence.num_generated_tokens or _is_cut(sequence)
