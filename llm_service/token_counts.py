"""TokenCounts: which tokens have come so far, and how often, kept on the device for presence, frequency and repetition
penalties."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from llm_service.sequence import Sequence
from llm_service.upload import Array

# A count is how often the token occurs in the answer, plus this when the prompt has it.
_IN_PROMPT = 1 << 30
_FIRST_NUM_SLOTS = 4


@dataclass
class _Slot:
    """A row of the counts. num_counted: how many tokens of its sequence are in it; less than 0 when unknown."""

    index: int
    num_counted: int = -1


class TokenCounts:
    """A row of counts for each sequence with penalties, brought up to date with every token that is chosen.

    So nothing has to wait for a token to reach the host. A row that does not fit its sequence (a new one, or one whose
    step failed) is written anew from the tokens, which the host knows then. `plan`, `penalize` and `count` belong to
    one step and one thread.
    """

    def __init__(self) -> None:
        self._slots: WeakKeyDictionary[Sequence, _Slot] = WeakKeyDictionary()
        self._counts: Tensor | None = None
        self._planned: list[tuple[Sequence, _Slot]] = []

    def plan(self, rows: Seq[int], sequences: Seq[Sequence]) -> dict[str, Array]:
        """What `penalize` needs on the device: `rows` of its logits are those of `sequences`, whose tokens are to be
        penalized. Empty without rows."""
        self._planned = [(sequence, self._slot(sequence)) for sequence in sequences]
        if not rows:
            return {}
        sampling = [sequence.sampling for sequence in sequences]
        fields: dict[str, Array] = {
            "penalty_rows": np.array(rows, np.int64),
            "penalty_slots": np.array([slot.index for _, slot in self._planned], np.int64),
            "repetition": np.array([values.repetition_penalty for values in sampling], np.float32),
            "frequency": np.array([values.frequency_penalty for values in sampling], np.float32),
            "presence": np.array([values.presence_penalty for values in sampling], np.float32),
        }
        stale = [(sequence, slot) for sequence, slot in self._planned if slot.num_counted != sequence.num_tokens]
        if stale:
            tokens, counts = zip(*(_count(sequence) for sequence, _ in stale), strict=True)
            slots = [np.full(len(known), slot.index) for known, (_, slot) in zip(tokens, stale, strict=True)]
            fields |= {
                "stale_slots": np.array([slot.index for _, slot in stale], np.int64),
                "stale_at": np.stack([np.concatenate(slots), np.concatenate(tokens)]).astype(np.int64),
                "stale_counts": np.concatenate(counts).astype(np.int32),
            }
        return fields

    def penalize(self, logits: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Changes the planned rows of logits [N, vocab], float32: first repetition (Keskar et al., 2019, as
        transformers has it), then frequency and presence (as the OpenAI API has them)."""
        rows = fields["penalty_rows"]
        counts = self._grown(logits)
        for _, slot in self._planned:
            slot.num_counted = -1
        if "stale_slots" in fields:
            counts.index_fill_(0, fields["stale_slots"], 0)
            counts.index_put_(tuple(fields["stale_at"]), fields["stale_counts"])
        counts = counts.index_select(0, fields["penalty_slots"])
        chosen = logits.index_select(0, rows)
        repetition = fields["repetition"][:, None]
        chosen = torch.where(counts != 0, torch.where(chosen > 0, chosen / repetition, chosen * repetition), chosen)
        in_answer = counts & (_IN_PROMPT - 1)
        chosen -= fields["frequency"][:, None] * in_answer
        chosen -= fields["presence"][:, None] * (in_answer > 0)
        logits.index_copy_(0, rows, chosen)

    def count(self, tokens: Tensor, fields: Mapping[str, Tensor]) -> None:
        """tokens [N] were chosen, row by row of the logits."""
        assert self._counts is not None
        chosen = tokens.index_select(0, fields["penalty_rows"])
        ones = torch.ones_like(chosen, dtype=torch.int32)
        self._counts.index_put_((fields["penalty_slots"], chosen), ones, accumulate=True)
        for sequence, slot in self._planned:
            slot.num_counted = sequence.num_tokens + 1

    def _slot(self, sequence: Sequence) -> _Slot:
        """That of the sequence, or one that no living sequence has."""
        slot = self._slots.get(sequence)
        if slot is None:
            used = {slot.index for slot in self._slots.values()}
            slot = _Slot(next(index for index in range(len(used) + 1) if index not in used))
            self._slots[sequence] = slot
        return slot

    def _grown(self, logits: Tensor) -> Tensor:
        """The counts, with room for all slots."""
        needed = max(slot.index for slot in self._slots.values()) + 1
        if self._counts is None or len(self._counts) < needed:
            num_slots = max(needed, _FIRST_NUM_SLOTS, 0 if self._counts is None else 2 * len(self._counts))
            grown = torch.zeros((num_slots, logits.shape[1]), dtype=torch.int32, device=logits.device)
            if self._counts is not None:
                grown[: len(self._counts)] = self._counts
            self._counts = grown
        return self._counts


def _count(sequence: Sequence) -> tuple[Array, Array]:
    """The tokens that occur, each once, and their counts."""
    answer = np.array(sequence.output_token_ids, np.int64)
    assert (answer >= 0).all(), "counted anew while a token is pending"
    in_answer, counts = np.unique(answer, return_counts=True)
    in_prompt = np.unique(np.array(sequence.token_ids[: sequence.num_tokens - len(answer)], np.int64))
    tokens, where = np.unique(np.concatenate([in_answer, in_prompt]), return_inverse=True)
    total = np.zeros(len(tokens), np.int32)
    np.add.at(total, where, np.concatenate([counts, np.full(len(in_prompt), _IN_PROMPT)]).astype(np.int32))
    return tokens, total
