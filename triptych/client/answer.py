"""What a client gets back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.errors import Unavailable
from triptych.v1 import common_pb2, inference_pb2

FinishReason = Literal["stop", "length", "aborted", "unspecified"]

_FINISH_REASONS: dict[int, FinishReason] = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_ABORTED: "aborted",
}


@dataclass(frozen=True)
class Answer:
    """A whole answer. `timings` are in seconds by stage, `route` names the actors and lanes that made it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: common_pb2.Usage
    timings: inference_pb2.Timings
    route: inference_pb2.Route
    request_id: str
    model: str

    def __str__(self) -> str:
        return self.text


class AnswerBuilder:
    """Collects the messages of one Generate call."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._summary: inference_pb2.GenerateSummary | None = None

    def add(self, response: inference_pb2.GenerateResponse) -> str:
        """The text that this message adds."""
        if response.WhichOneof("message") == "summary":
            self._summary = response.summary
            return ""
        self._texts.append(response.chunk.text)
        self._token_ids.extend(response.chunk.token_ids)
        return response.chunk.text

    def answer(self) -> Answer:
        """The whole; raises Unavailable when the summary, which is the last message, has not come."""
        summary = self._summary
        if summary is None:
            raise Unavailable("the answer is not complete: its summary has not come")
        return Answer(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=_FINISH_REASONS.get(summary.finish_reason, "unspecified"),
            usage=summary.usage,
            timings=summary.timings,
            route=summary.route,
            request_id=summary.request_id,
            model=summary.model,
        )
