"""How often an answer's tokens are passed on when many answers run."""

from __future__ import annotations


class ChunkPace:
    """A chunk costs the router about the same whether it has one token or ten. Few answers get each token as it comes;
    of many each gets what came in `interval_s` as one chunk, so that all together are `max_chunks_per_s`.
    """

    def __init__(self, max_chunks_per_s: float) -> None:
        self._max_chunks_per_s = max_chunks_per_s
        self._num_answers = 0

    @property
    def interval_s(self) -> float:
        """From one chunk of an answer to the next."""
        return self._num_answers / self._max_chunks_per_s

    def begin_answer(self) -> None:
        self._num_answers += 1

    def end_answer(self) -> None:
        self._num_answers -= 1
