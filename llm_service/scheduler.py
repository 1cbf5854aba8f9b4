"""Scheduler: which tokens of which sequences the next engine step computes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from llm_service.kv_cache import PagedKvCache
from llm_service.page_hash import extend_page_hashes
from llm_service.page_pool import PagePool
from llm_service.sequence import Sequence, SequenceState
from triptych.config import LanguageSection


@dataclass(frozen=True)
class Chunk:
    """The tokens [start, end) of a sequence, to be computed in one step, and the pages of the whole sequence."""

    sequence: Sequence
    start: int
    end: int
    block_table: list[int]

    @property
    def num_new_tokens(self) -> int:
        return self.end - self.start

    @property
    def is_sampled(self) -> bool:
        """Does the chunk reach the last known token, so that the next one can be chosen?"""
        return self.end == self.sequence.num_tokens


class Scheduler:
    """Continuous batching over a page pool: decode tokens first, then chunks of prompts, oldest first.

    A sequence gets the pages of all its known tokens when it is admitted and one more whenever it outgrows them. When
    there is none, the sequence admitted last gives way: it goes back to the head of the queue with its pages recomputed
    later or, where that is impossible, copied out.
    """

    def __init__(self, section: LanguageSection, pool: PagePool, cache: PagedKvCache) -> None:
        self.section = section
        self.pool = pool
        self.cache = cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step: decoding sequences first. Never empty while there is work and every sequence fits alone."""
        num_preemptions = self.num_preemptions
        self._grow_running()
        if self.num_preemptions == num_preemptions:
            self._admit_waiting()
        return self._share_out_tokens()

    def advance(self, chunk: Chunk) -> None:
        """The chunk was computed; pages that are full now can be found by others."""
        sequence, pool = chunk.sequence, self.pool
        first_full = sequence.num_computed_tokens // pool.page_size
        sequence.num_computed_tokens = chunk.end
        self._publish_pages(sequence, first_full)

    def remove(self, sequence: Sequence) -> None:
        """The sequence ended, in whatever state; nothing of it stays."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pool.release(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.parked_pages = None

    def export_prefix(self, sequence: Sequence) -> Tensor:
        """A host copy of the full pages that are already here for a prompt whose pages come from elsewhere."""
        pages = self._match_prefix(sequence, sequence.num_tokens)
        return self.cache.export_pages(pages, len(pages) * self.pool.page_size)

    def export_pages(self, sequence: Sequence) -> Tensor:
        """A host copy of the pages of the sequence's computed tokens, one row a page."""
        num_pages = self.pool.num_pages_for(sequence.num_computed_tokens)
        pages = self.pool.table(sequence)[:num_pages]
        return self.cache.export_pages(pages, sequence.num_computed_tokens)

    def _grow_running(self) -> None:
        for sequence in list(self.running):
            if sequence.state is not SequenceState.RUNNING:
                break  # Preempted below, and so are all that come after it.
            num_missing = self.pool.num_pages_for(sequence.num_tokens) - len(self.pool.table(sequence))
            while sequence.state is SequenceState.RUNNING and not self.pool.can_allocate(num_missing):
                self._preempt(self.running[-1])
            if sequence.state is SequenceState.RUNNING:
                self.pool.allocate(sequence, num_missing)

    def _admit_waiting(self) -> None:
        num_backlog_tokens = sum(sequence.num_uncomputed_tokens for sequence in self.running)
        while self.waiting and len(self.running) < self.section.max_running_requests:
            if num_backlog_tokens >= self.section.max_step_tokens or not self._admit(self.waiting[0]):
                return
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            num_backlog_tokens += sequence.num_uncomputed_tokens

    def _admit(self, sequence: Sequence) -> bool:
        """Gives the sequence its pages, shared ones first; False when there are too few."""
        # The last token has to be computed, whatever is cached: its logits choose the next one.
        shared = self._match_prefix(sequence, sequence.num_tokens - 1)
        num_new = self.pool.num_pages_for(sequence.num_tokens) - len(shared)
        if not self.pool.can_allocate(num_new, shared):
            return False
        table = self.pool.allocate(sequence, num_new, shared)
        sequence.state = SequenceState.RUNNING
        if sequence.parked_pages is not None:
            self._unpark(sequence, table, len(shared))
            return True
        sequence.num_computed_tokens = len(shared) * self.pool.page_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_prompt_tokens = sequence.num_computed_tokens
        return True

    def _match_prefix(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Pages held or cached for the first `num_tokens` tokens of the sequence, full ones only."""
        if not self.pool.enable_prefix_cache:
            return []
        num_full_pages = num_tokens // self.pool.page_size
        return self.pool.match(extend_page_hashes(sequence, num_full_pages, self.pool.page_size))

    def _unpark(self, sequence: Sequence, table: list[int], num_shared: int) -> None:
        assert sequence.parked_pages is not None
        num_parked = len(sequence.parked_pages)
        self.cache.import_pages(table[num_shared:num_parked], sequence.parked_pages[num_shared:])
        sequence.parked_pages = None
        self._publish_pages(sequence, num_shared)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if sequence.can_recompute:
            sequence.num_computed_tokens = 0
        else:
            sequence.parked_pages = self.export_pages(sequence)
        self.pool.release(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _publish_pages(self, sequence: Sequence, first_full: int) -> None:
        num_full = sequence.num_computed_tokens // self.pool.page_size
        if not self.pool.enable_prefix_cache or first_full == num_full:
            return
        table = self.pool.table(sequence)
        hashes = extend_page_hashes(sequence, num_full, self.pool.page_size)
        for index in range(first_full, num_full):
            self.pool.publish(table[index], hashes[index])

    def _share_out_tokens(self) -> list[Chunk]:
        budget = self.section.max_step_tokens
        chunks = []
        # A stable sort: single tokens first, each group in the order of admission.
        for sequence in sorted(self.running, key=lambda sequence: sequence.num_uncomputed_tokens > 1):
            num_new = min(sequence.num_uncomputed_tokens, self.section.prefill_chunk_tokens, budget)
            if num_new == 0:
                break
            start = sequence.num_computed_tokens
            chunks.append(Chunk(sequence, start, start + num_new, self.pool.table(sequence)))
            budget -= num_new
        return chunks
