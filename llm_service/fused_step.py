"""FusedStep: a step that the device still computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llm_service.layer_marks import LayerMarks
from llm_service.logprobs import StepLogprobs, TokenLogprob
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence


@dataclass(frozen=True)
class FusedStep:
    """A step on its way. rows: for each chunk its row of `tokens`, None for those that are not sampled."""

    chunks: list[Chunk]
    rows: list[int | None]
    tokens: NDArray[np.int64]
    step_logprobs: StepLogprobs | None
    done: torch.cuda.Event | None
    marks: LayerMarks | None

    def read(self) -> list[int | None]:
        if self.marks is not None:
            self.marks.report()
        if self.done is not None:
            self.done.synchronize()
        tokens = self.tokens.tolist()
        return [None if row is None else tokens[row] for row in self.rows]

    def logprobs(self) -> Mapping[Sequence, TokenLogprob]:
        return self.step_logprobs.read() if self.step_logprobs is not None else {}
