"""Runner: what the engine asks of whoever computes its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from llm_service.logit_rules import StopTokens
from llm_service.logprobs import TokenLogprob
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence

Progress = Callable[[int, int], None]
"""Called with how many parts of a preparation are done, and of how many."""


@dataclass(frozen=True)
class LayerWatch:
    """Asks a runner to tell when the keys and values of the first n layers of a step are in their pages.

    ends: the n that are asked for. report: called with each n, in order, on the thread that launches and reads, at a
    moment of `launch` or `read`. A runner that can't tell before the step is over does not call it.
    """

    ends: frozenset[int]
    report: Callable[[int], None]


class LaunchedStep(Protocol):
    """A step on its way."""

    @property
    def chunks(self) -> list[Chunk]:
        """Its chunks, in the order in which `read` answers."""
        ...

    def read(self) -> list[int | None]:
        """Waits for the step. The next token of each chunk that is sampled, None for the others."""
        ...

    def logprobs(self) -> Mapping[Sequence, TokenLogprob]:
        """After `read`: those of the next tokens of the sequences that asked for them."""
        ...


class Runner(Protocol):
    """Computes steps in the order of their launch.

    num_steps_ahead: steps that may be in flight when the next one is launched; their pending tokens are known to the
    runner alone.
    """

    num_steps_ahead: int

    @property
    def sampler(self) -> StopTokens: ...

    def prepare(self) -> None:
        """Called once, on the thread that launches, before the first step."""
        ...

    def launch(self, chunks: list[Chunk], watch: LayerWatch | None = None) -> LaunchedStep:
        """Begins a step. What it raises has changed nothing: the same chunks may be launched again."""
        ...
