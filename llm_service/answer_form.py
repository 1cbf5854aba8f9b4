"""AnswerForm: which tokens may come next in an answer that is held to a form."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from triptych.constraint import FIELD, Constraint
from triptych.errors import FailedPrecondition, InvalidRequest
from triptych.models_folder import resolve_model_folder

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# What reading a grammar and computing one mask may cost, in the library's units, parts of what it would allow: the
# engine waits for masks. Repetitions in repetitions, unfolded, take a second with its own limits.
_INITIAL_FUEL, _STEP_FUEL, _STEP_ITEMS = 100_000, 50_000, 20_000
_NUM_KEPT_GRAMMARS = 64
_NUM_COMPILERS = 2
_BITS = 32


class AnswerForm:
    """The state of one answer: fed with its tokens, asked for what may follow. One user at a time."""

    def __init__(self, matcher: LLMatcher, constraint: Constraint) -> None:
        self._matcher = matcher
        self._constraint = constraint
        self._mask: NDArray[np.int32] | None = None

    @property
    def is_complete(self) -> bool:
        """No token can follow, only the end."""
        return self._matcher.is_stopped()

    def accept(self, token_id: int) -> None:
        """The next token was chosen. Raises InvalidRequest for one that the form does not have there."""
        self._mask = None
        # The end-of-sequence token may be chosen where the answer is complete; nothing is asked after it.
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token_id):
            raise self._error()

    def mask(self) -> NDArray[np.int32]:
        """Bit token % 32 of word token // 32 says whether the token may come next; an end-of-sequence token may where
        the answer may end. Not to be changed by the caller.

        Raises InvalidRequest where the form is too intricate to go on.
        """
        if self._mask is None:
            self._mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
            if self._matcher.is_error():
                self._mask = None
                raise self._error()
        return self._mask

    def check(self) -> None:
        """Raises InvalidRequest when the grammar could not be compiled."""
        if self._matcher.is_error():
            raise self._error()

    def fork(self) -> AnswerForm:
        """The same state, for another answer."""
        fork = AnswerForm(self._matcher.deep_copy(), self._constraint)
        fork._mask = self._mask
        return fork

    def _error(self) -> InvalidRequest:
        return self._constraint.refused(self._matcher.get_error())


def without(mask: NDArray[np.int32], token_ids: Collection[int]) -> NDArray[np.int32]:
    """The mask less these tokens; as it is where nothing else is left."""
    words = mask.copy()
    tokens = np.fromiter(token_ids, dtype=np.int64)
    bits = np.left_shift(np.uint32(1), (tokens % _BITS).astype(np.uint32))
    np.bitwise_and.at(words.view(np.uint32), tokens // _BITS, ~bits)
    return words if words.any() else mask


class AnswerForms:
    """Makes forms for the vocabulary of one checkpoint: reads its tokenizer when the first is asked for.

    Belongs to one event loop, compiles on other threads, and keeps what was compiled lately.
    """

    def __init__(self, model_path: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._model_path = model_path
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, AnswerForm] = OrderedDict()
        self._compilers = asyncio.Semaphore(_NUM_COMPILERS)

    async def make(self, constraint: Constraint, token_ids: Sequence[int] = ()) -> AnswerForm:
        """The state after `token_ids` of the answer. Raises InvalidRequest, naming the constraint's field."""
        form = self._compiled.get(constraint)
        if form is None:
            async with self._compilers:
                form = await asyncio.to_thread(self._compile, constraint)
            self._compiled[constraint] = form
            if len(self._compiled) > _NUM_KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint)
        form = form.fork()
        for token in token_ids:
            form.accept(token)
        return form

    def _compile(self, constraint: Constraint) -> AnswerForm:
        """The library bounds its own work; the first mask, by far the slowest, is computed here as well."""
        # An actor without constrained answers does without the library.
        from llguidance import LLMatcher, LLParserLimits

        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        limits = LLParserLimits(
            initial_lexer_fuel=_INITIAL_FUEL, step_lexer_fuel=_STEP_FUEL, step_max_items=_STEP_ITEMS
        )
        form = AnswerForm(LLMatcher(self._tokenizer, constraint.grammar, log_level=0, limits=limits), constraint)
        form.check()
        form.mask()
        return form

    def _load_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        text = (resolve_model_folder(self._model_path) / "tokenizer.json").read_text(encoding="utf-8")
        try:
            return LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._eos_token_ids)
        except ValueError as error:
            message = f"the checkpoint's tokenizer can't hold answers to a form: {error}"
            raise FailedPrecondition(message, field=FIELD) from None
