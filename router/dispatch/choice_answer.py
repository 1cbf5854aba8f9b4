"""One of the n answers of a request, on its way from tokens to what the client gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from router.dispatch.answer_text import AnswerText
from router.dispatch.token_queue import ENDS_NOT, Tokens
from triptych.v1 import common_pb2, inference_pb2

BytesOfToken = Callable[[int], bytes]


class ChoiceAnswer:
    """Makes the answer's chunks and knows its figures; `finish_reason` is set once it ended."""

    def __init__(self, index: int, text: AnswerText, bytes_of_token: BytesOfToken) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: common_pb2.FinishReason = ENDS_NOT
        self.is_stopped = False
        self._text = text
        self._bytes_of_token = bytes_of_token

    @property
    def is_finished(self) -> bool:
        return self.finish_reason != ENDS_NOT

    def chunk(self, tokens: Tokens) -> inference_pb2.TokenChunk | None:
        """What these tokens add; None when that is nothing."""
        if self.is_finished:
            return None
        piece = self._text.push(tokens.token_ids, is_last=tokens.is_last)
        self.num_tokens += len(piece.token_ids)
        # A stop string ended it before whoever generates it knew of an end.
        self.is_stopped = piece.is_stopped and not tokens.is_last
        self.finish_reason = common_pb2.FINISH_REASON_STOP if piece.is_stopped else tokens.finish_reason
        if not (piece.text or piece.token_ids or self.is_finished):
            return None
        return inference_pb2.TokenChunk(
            text=piece.text,
            token_ids=piece.token_ids,
            choice_index=self.index,
            logprobs=self._with_bytes(tokens.logprobs[: len(piece.token_ids)]),
            finish_reason=self.finish_reason,
        )

    def summary(self) -> inference_pb2.ChoiceSummary:
        return inference_pb2.ChoiceSummary(
            choice_index=self.index, finish_reason=self.finish_reason, completion_tokens=self.num_tokens
        )

    def _with_bytes(self, logprobs: Iterable[bytes]) -> list[common_pb2.TokenLogprob]:
        told = []
        for logprob in map(common_pb2.TokenLogprob.FromString, logprobs):
            top = [
                common_pb2.TopLogprob(
                    token_id=entry.token_id, logprob=entry.logprob, token=self._bytes_of_token(entry.token_id)
                )
                for entry in logprob.top
            ]
            token = self._bytes_of_token(logprob.token_id)
            told.append(
                common_pb2.TokenLogprob(token_id=logprob.token_id, logprob=logprob.logprob, token=token, top=top)
            )
        return told
