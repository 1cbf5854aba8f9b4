"""Scheduler: which tokens of which sequences the next engine step computes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from llm_service.kv_cache import PageStore
from llm_service.kv_export import ExportedPart
from llm_service.page_hash import extend_page_hashes
from llm_service.page_pool import PagePool, PageTable
from llm_service.sequence import Sequence, SequenceState
from triptych.config import LanguageSection
from triptych.transport.parts import TicketPart

# Rows of a tile of the linears: a chunk beside decodes that is a multiple of it fills up nothing.
_TILE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens [start, end) of a sequence, to be computed in one step, and the pages of the whole sequence.

    is_sampled: the chunk reaches the last token, so that the next one can be chosen.
    """

    sequence: Sequence
    start: int
    end: int
    block_table: PageTable
    is_sampled: bool

    @property
    def num_new_tokens(self) -> int:
        return self.end - self.start


class Scheduler:
    """Continuous batching over a page pool: decode tokens first, then chunks of prompts, oldest first.

    A sequence gets the pages of all its known tokens when it is admitted and one more whenever it outgrows them. When
    there is none, the sequence admitted last gives way: it goes back to the head of the queue with its pages recomputed
    later or, where that is impossible, copied out.

    It may run ahead of the device: the next step is scheduled while steps are in flight, whose tokens are pending.
    context_cost: what attending to one token of context costs a prompt token, as a part of all else that it costs.
    """

    def __init__(self, section: LanguageSection, pool: PagePool, cache: PageStore, context_cost: float = 0.0) -> None:
        self.section = section
        self.pool = pool
        self.cache = cache
        self.context_cost = context_cost
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        # What the last call of `schedule` found: work that can go on only when embeddings arrive.
        self.is_starved = False
        self._was_burst = False

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step: decoding sequences first. Empty only when tokens in flight have to be received before, or
        embeddings (`is_starved`)."""
        num_preemptions = self.num_preemptions
        self.is_starved = False
        if not self._grow_running():
            return []
        if self.num_preemptions == num_preemptions:
            self._admit_waiting()
        chunks = self._share_out_tokens()
        has_all_it_can = self.num_preemptions == num_preemptions and not chunks
        self.is_starved = has_all_it_can and any(not sequence.has_all_embeddings for sequence in self.running)
        return chunks

    def advance(self, chunk: Chunk) -> None:
        """The chunk was launched: as far as scheduling goes, it is computed, and its next token is there."""
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.end
        if chunk.is_sampled:
            sequence.expect_token()

    def publish(self, chunk: Chunk) -> None:
        """The chunk was computed, and all its tokens are known: pages that are full now can be found by others."""
        if self._is_current(chunk):
            self._publish_pages(chunk.sequence, chunk.start // self.pool.page_size, chunk.end)

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

    def export_parts(self, chunk: Chunk, num_layers: int | None = None) -> list[ExportedPart]:
        """Copies for another actor: the parts of the prompt's pages that are complete with the first layers of a chunk
        (None: with all) and have not left before, all but the last of the prompt."""
        export = chunk.sequence.kv_export
        if export is None or not self._is_current(chunk):
            return []
        exported = []
        for part in export.due(self._num_complete_pages(chunk), num_layers or export.last.end_layer):
            exported.append(ExportedPart(part, self._hand_over(chunk.sequence, part)))
            export.note_left(part)
        return exported

    def layer_ends(self, chunk: Chunk) -> set[int]:
        """After so many layers each parts of the prompt's pages may leave, while the chunk's other layers are still to
        be computed."""
        export = chunk.sequence.kv_export
        return set() if export is None else export.layer_ends(self._num_complete_pages(chunk))

    def _num_complete_pages(self, chunk: Chunk) -> int:
        """Pages of the prompt that are full, or as full as they get, when the chunk is computed."""
        num_prompt_tokens = chunk.sequence.prompt.num_tokens
        is_whole = chunk.end >= num_prompt_tokens
        return self.pool.num_pages_for(num_prompt_tokens) if is_whole else chunk.end // self.pool.page_size

    def _hand_over(self, sequence: Sequence, part: TicketPart) -> Tensor:
        num_tokens = sequence.prompt.num_tokens - part.first_row * self.pool.page_size
        pages = self.pool.table(sequence)[part.first_row : part.end_row]
        return self.cache.hand_over_pages(pages, min(num_tokens, len(pages) * self.pool.page_size), part.layers)

    def _is_current(self, chunk: Chunk) -> bool:
        """The sequence still has the pages that the chunk was computed into."""
        is_running = chunk.sequence.state is SequenceState.RUNNING
        return is_running and chunk.block_table is self.pool.table(chunk.sequence)

    def export_rest(self, sequence: Sequence) -> Tensor:
        """The same of the last part, or of all pages where they have no parts, when the prompt is computed."""
        if sequence.kv_export is not None:
            return self._hand_over(sequence, sequence.kv_export.last)
        num_tokens = sequence.num_computed_tokens
        pages = self.pool.table(sequence)[: self.pool.num_pages_for(num_tokens)]
        return self.cache.hand_over_pages(pages, num_tokens)

    def _grow_running(self) -> bool:
        """Pages for the tokens to be computed. False when there are too few and tokens are pending: what is in flight
        may end sequences, and none of those still waiting for a token can be preempted."""
        for sequence in list(self.running):
            if sequence.state is not SequenceState.RUNNING:
                break  # Preempted below, and so are all that come after it.
            num_missing = self.pool.num_pages_for(sequence.num_tokens) - len(self.pool.table(sequence))
            if num_missing <= 0 or sequence.is_complete:
                continue
            if not self.pool.can_allocate(num_missing) and any(other.num_pending_tokens for other in self.running):
                return False
            while sequence.state is SequenceState.RUNNING and not self.pool.can_allocate(num_missing):
                self._preempt(self.running[-1])
            if sequence.state is SequenceState.RUNNING:
                self.pool.allocate(sequence, num_missing)
        return True

    def _admit_waiting(self) -> None:
        num_backlog_tokens = sum(sequence.num_computable_tokens for sequence in self.running)
        while self.waiting and len(self.running) < self.section.max_running_requests:
            if num_backlog_tokens >= self.section.max_step_tokens or not self._admit(self.waiting[0]):
                return
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            num_backlog_tokens += sequence.num_computable_tokens

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
        sequence.skip_cached()
        return True

    def _match_prefix(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Pages held or cached for the first `num_tokens` tokens of the sequence, full ones only."""
        if not self.pool.enable_prefix_cache:
            return []
        num_full_pages = num_tokens // self.pool.page_size
        return self.pool.match(extend_page_hashes(sequence, num_full_pages, self.pool.page_size))

    def _unpark(self, sequence: Sequence, table: PageTable, num_shared: int) -> None:
        assert sequence.parked_pages is not None
        num_parked = len(sequence.parked_pages)
        self.cache.import_pages(table[num_shared:num_parked], sequence.parked_pages[num_shared:])
        sequence.parked_pages = None
        # Others may have computed more of the same prompt meanwhile.
        sequence.num_computed_tokens = max(sequence.num_computed_tokens, num_shared * self.pool.page_size)
        self._publish_pages(sequence, num_shared, sequence.num_computed_tokens)

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

    def _publish_pages(self, sequence: Sequence, first_full: int, num_computed_tokens: int) -> None:
        num_full = num_computed_tokens // self.pool.page_size
        if not self.pool.enable_prefix_cache or first_full == num_full:
            return
        table = self.pool.table(sequence)
        hashes = extend_page_hashes(sequence, num_full, self.pool.page_size)
        for index in range(first_full, num_full):
            self.pool.publish(table[index], hashes[index])

    def _share_out_tokens(self) -> list[Chunk]:
        budget = self.section.max_step_tokens
        # What is held to a form waits for its last token: a loop that runs ahead takes it along every other step.
        unfinished = [s for s in self.running if not s.is_complete and not s.is_waiting_for_token and self._is_worth(s)]
        decoding = [sequence for sequence in unfinished if sequence.num_uncomputed_tokens == 1]
        prompts = [sequence for sequence in unfinished if sequence.num_uncomputed_tokens > 1]
        if self._is_burst(decoding, prompts):
            decoding = []
        chunks = [self._chunk(sequence, 1) for sequence in decoding[:budget]]
        # Prompts hold up nobody when nobody decodes.
        is_mixed = bool(chunks)
        prefill_budget = float(self.section.mixed_prefill_tokens if is_mixed else budget)
        budget -= len(chunks)
        for sequence in prompts:
            cost = 1 + self.context_cost * sequence.num_computed_tokens if is_mixed else 1.0
            num_affordable = max(int(prefill_budget / cost), 1)
            if is_mixed:
                num_affordable = _whole_tiles(num_affordable)
            num_new = min(sequence.num_computable_tokens, self.section.prefill_chunk_tokens, budget, num_affordable)
            if num_new == 0 or prefill_budget < 1:
                break
            chunks.append(self._chunk(sequence, num_new))
            budget -= num_new
            prefill_budget -= num_new * cost
        return chunks

    def _is_worth(self, sequence: Sequence) -> bool:
        """Whether the sequence has tokens for a step: all that it lacks, or enough before a picture that is to come."""
        num_computable = sequence.num_computable_tokens
        is_all = num_computable == sequence.num_uncomputed_tokens
        if is_all or num_computable >= self.section.overlap_min_tokens:
            sequence.go_on()
            return True
        if sequence.started_s == 0.0:
            sequence.pause()
        return False

    def _is_burst(self, decoding: list[Sequence], prompts: list[Sequence]) -> bool:
        """Whether sequences that have but their first token wait one step for prompts that came with them.

        When many requests come at once, their prompts may need more than one step, and from the second on the first of
        them decode. One large step of prompts is quicker than many small ones beside decodes, and no stream flows yet
        that it could hold up: 128 prompts of 512 tokens are computed in two steps instead of some thirty. It is never
        done twice in a row, so that a first token waits for one step of prompts at most, however many more come.
        """
        is_fresh = all(sequence.num_generated_tokens == 1 for sequence in decoding)
        is_limited = self.section.mixed_prefill_tokens < self.section.max_step_tokens
        is_burst = bool(decoding and prompts) and is_fresh and is_limited and not self._was_burst
        self._was_burst = is_burst
        return is_burst

    def _chunk(self, sequence: Sequence, num_new: int) -> Chunk:
        start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + num_new
        return Chunk(sequence, start, end, self.pool.table(sequence), end == sequence.num_tokens)


def _whole_tiles(num_tokens: int) -> int:
    return num_tokens if num_tokens < _TILE_TOKENS else num_tokens // _TILE_TOKENS * _TILE_TOKENS
