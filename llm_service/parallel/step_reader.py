"""StepReader: a follower's copies of the leader's sequences, and the chunks of the step that a frame describes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm_service.answer_form import AnswerForm
from llm_service.page_pool import PAGE_TYPECODE, PageTable
from llm_service.parallel.frames import Frame
from llm_service.prompt import Prompt
from llm_service.scheduler import Chunk
from llm_service.sequence import EmbeddingSlice, Sequence
from triptych.config import DefaultsSection, LimitsSection
from triptych.errors import IntegrityError
from triptych.sampling import SamplingParameters
from triptych.v1 import common_pb2

ReceiveRows = Callable[[int, int], Tensor]
"""Takes the next media part, [rows, columns], from the leader."""


@dataclass(eq=False)
class MirroredSequence(Sequence):
    """As far as a runner looks at it. table: its pages; parts: the media of the chunk that is next; chosen: what this
    rank sampled and the leader has not told yet, by place."""

    table: PageTable = field(default_factory=lambda: array(PAGE_TYPECODE))
    parts: tuple[EmbeddingSlice, ...] = ()
    chosen: dict[int, int] = field(default_factory=dict)

    def embedding_slices(self, start: int, end: int) -> Iterator[EmbeddingSlice]:
        return iter(self.parts)

    def tell(self, first: int, tokens: Seq[int]) -> None:
        """The leader's tokens from `first` on. Raises IntegrityError where this rank chose another one."""
        self.token_ids[first:] = tokens
        for index, token in enumerate(tokens, first):
            if token >= 0 and self.chosen.pop(index, token) != token:
                raise IntegrityError(
                    f"the leader sampled {token} as token {index} of a sequence, and this rank did not"
                )


class StepReader:
    """Follows the frames of one `StepWriter`, each of them once."""

    def __init__(self, defaults: DefaultsSection, limits: LimitsSection) -> None:
        self._defaults = defaults
        self._limits = limits
        self._sequences: dict[int, MirroredSequence] = {}

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    def read(self, frame: Frame, receive_rows: ReceiveRows) -> list[Chunk]:
        """The chunks, in the leader's order; media come by `receive_rows` meanwhile."""
        fields = _Fields(frame)
        for slot in fields.next_list():
            del self._sequences[slot]
        for _ in range(fields.next()):
            self._add(fields)
        return [self._chunk(fields, receive_rows) for _ in range(fields.next())]

    def _add(self, fields: _Fields) -> None:
        slot, token_limit, has_form, num_generated = fields.take(4).tolist()
        token_ids = fields.next_list()
        positions = fields.take(3 * len(token_ids)).reshape(3, -1)
        message = common_pb2.SamplingParameters.FromString(fields.take_bytes(fields.next()))
        sampling = SamplingParameters.from_proto(message, self._defaults, self._limits)
        prompt = Prompt(tuple(token_ids), (), positions, num_generated)
        form = cast(AnswerForm, _ToldForm()) if has_form else None
        self._sequences[slot] = MirroredSequence(f"slot-{slot}", prompt, sampling, form=form, token_limit=token_limit)

    def _chunk(self, fields: _Fields, receive_rows: ReceiveRows) -> Chunk:
        sequence = self._sequences[fields.next()]
        start, end, is_sampled = fields.next(), fields.next(), bool(fields.next())
        mask = fields.take_bytes(fields.next())
        if isinstance(sequence.form, _ToldForm):
            sequence.form.tell(np.frombuffer(mask, dtype=np.int32))
        first_token = fields.next()
        sequence.tell(first_token, fields.next_list())
        first_page = fields.next()
        if first_page == 0:
            # Another object: steps in flight may still look at the one before.
            sequence.table = array(PAGE_TYPECODE)
        sequence.table.extend(fields.next_list())
        parts = []
        for _ in range(fields.next()):
            offset, num_rows, num_columns = fields.take(3).tolist()
            parts.append(EmbeddingSlice(offset, receive_rows(num_rows, num_columns), 0, num_rows))
        sequence.parts = tuple(parts)
        return Chunk(sequence, start, end, sequence.table, is_sampled)


class _ToldForm:
    """In place of an AnswerForm: what it allows next, as the leader told it."""

    def __init__(self) -> None:
        self._mask = np.zeros(0, dtype=np.int32)

    def tell(self, mask: NDArray[np.int32]) -> None:
        self._mask = mask

    def mask(self) -> NDArray[np.int32]:
        return self._mask


class _Fields:
    """Takes the integers and the bytes of a frame one after the other."""

    def __init__(self, frame: Frame) -> None:
        self._integers, self._data = frame.integers, frame.data
        self._next, self._next_byte = 0, 0

    def next(self) -> int:
        return int(self.take(1)[0])

    def next_list(self) -> list[int]:
        """As many as the integer before them says."""
        numbers: list[int] = self.take(self.next()).tolist()
        return numbers

    def take(self, count: int) -> NDArray[np.int64]:
        taken = self._integers[self._next : self._next + count]
        if count < 0 or len(taken) != count:
            raise IntegrityError(f"the description of a step ends after {len(self._integers)} integers")
        self._next += count
        return taken

    def take_bytes(self, count: int) -> bytes:
        taken = self._data[self._next_byte : self._next_byte + count]
        if count < 0 or len(taken) != count:
            raise IntegrityError(f"the description of a step ends after {len(self._data)} bytes")
        self._next_byte += count
        return taken
