"""StepWriter: the description of a step, as far as the followers do not know it yet. Read by `StepReader`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from llm_service.page_pool import PAGE_TYPECODE, PageTable
from llm_service.parallel.frames import Frame, FrameKind
from llm_service.scheduler import Chunk
from llm_service.sequence import PENDING_TOKEN, Sequence, SequenceState


@dataclass
class _Known:
    """What the followers have of a sequence. num_tokens: its first tokens that are told for good."""

    slot: int
    num_tokens: int
    table: PageTable = field(default_factory=lambda: array(PAGE_TYPECODE))
    num_pages: int = 0


@dataclass(frozen=True)
class WrittenStep:
    """media: rows of embeddings, in the order in which the frame names them; they travel by themselves."""

    frame: Frame
    media: list[Tensor]


class StepWriter:
    """Integers of a step, each list after its length:

        released slots;
        new sequences: slot, token limit, whether it has a form, how many prompt tokens were generated before, prompt
        tokens, positions [3 * tokens], bytes of the sampling parameters;
        chunks: slot, start, end, whether it is sampled, bytes of the form's mask, the first token told and the tokens
        from there on, the first page told and the pages from there on, media parts as triples of offset, rows and
        columns.

    Data, in that order: sampling parameters (v1.SamplingParameters), and masks of the tokens that an answer's form
    allows next (see `AnswerForm.mask`).
    """

    def __init__(self) -> None:
        self._known: dict[Sequence, _Known] = {}
        self._next_slot = 0

    def write(self, chunks: Seq[Chunk]) -> WrittenStep:
        """The frame has to reach every follower: the next one goes on from it.

        Raises InvalidRequest, with nothing changed, when an answer's form can't go on.
        """
        masks = [_mask(chunk) for chunk in chunks]
        released = [sequence for sequence in self._known if sequence.state is SequenceState.FINISHED]
        integers = [len(released), *(self._known.pop(sequence).slot for sequence in released)]
        new = [sequence for chunk in chunks if (sequence := chunk.sequence) not in self._known]
        data: list[bytes] = []
        integers.append(len(new))
        for sequence in new:
            self._add(sequence, integers, data)
        media: list[Tensor] = []
        integers.append(len(chunks))
        for chunk, mask in zip(chunks, masks, strict=True):
            self._add_chunk(chunk, len(mask), integers, media)
        data += masks
        return WrittenStep(Frame.of(FrameKind.STEP, integers, b"".join(data)), media)

    def _add(self, sequence: Sequence, integers: list[int], data: list[bytes]) -> None:
        known = self._known[sequence] = _Known(self._next_slot, sequence.prompt.num_tokens)
        self._next_slot += 1
        prompt, sampling = sequence.prompt, sequence.sampling.to_proto().SerializeToString()
        integers += (known.slot, sequence.token_limit, sequence.form is not None, prompt.num_generated)
        integers.append(prompt.num_tokens)
        integers += prompt.token_ids
        integers += prompt.positions.flatten().tolist()
        integers.append(len(sampling))
        data.append(sampling)

    def _add_chunk(self, chunk: Chunk, num_mask_bytes: int, integers: list[int], media: list[Tensor]) -> None:
        sequence = chunk.sequence
        known = self._known[sequence]
        tokens = sequence.token_ids[known.num_tokens :]
        integers += (known.slot, chunk.start, chunk.end, chunk.is_sampled, num_mask_bytes)
        integers += (known.num_tokens, len(tokens), *tokens)
        known.num_tokens += tokens.index(PENDING_TOKEN) if PENDING_TOKEN in tokens else len(tokens)
        # A table only grows; a sequence that was preempted gets another one.
        if chunk.block_table is not known.table:
            known.table, known.num_pages = chunk.block_table, 0
        pages = chunk.block_table[known.num_pages :]
        integers += (known.num_pages, len(pages), *pages)
        known.num_pages = len(chunk.block_table)
        parts = list(sequence.embedding_slices(chunk.start, chunk.end))
        integers.append(len(parts))
        for part in parts:
            rows = part.embedding[part.first_row : part.last_row]
            integers += (part.offset, *rows.shape)
            media.append(rows)


def _mask(chunk: Chunk) -> bytes:
    form = chunk.sequence.form
    return b"" if form is None else form.mask().tobytes()
