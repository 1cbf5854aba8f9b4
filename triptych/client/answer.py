"""What a client gets back."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
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
class Choice:
    """One of n answers. logprobs: one for each token where they were asked for, none otherwise."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[common_pb2.TokenLogprob, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Answer:
    """A whole answer. `timings` are in seconds by stage, `route` names the actors and lanes that made it.

    Where several were asked for, `choices` has them all; text, tokens, finish reason and logprobs are the first one's.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: common_pb2.Usage
    timings: inference_pb2.Timings
    route: inference_pb2.Route
    request_id: str
    model: str
    choices: tuple[Choice, ...] = ()

    @property
    def logprobs(self) -> tuple[common_pb2.TokenLogprob, ...]:
        return self.choices[0].logprobs if self.choices else ()

    def __str__(self) -> str:
        return self.text


@dataclass
class _Parts:
    """What has come of one answer."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[common_pb2.TokenLogprob] = field(default_factory=list)

    def add(self, chunk: inference_pb2.TokenChunk) -> None:
        self.texts.append(chunk.text)
        self.token_ids.extend(chunk.token_ids)
        self.logprobs.extend(chunk.logprobs)

    def choice(self, index: int, finish_reason: common_pb2.FinishReason) -> Choice:
        reason = _FINISH_REASONS.get(finish_reason, "unspecified")
        return Choice(index, "".join(self.texts), tuple(self.token_ids), reason, tuple(self.logprobs))


class AnswerBuilder:
    """Collects the messages of one Generate call."""

    def __init__(self) -> None:
        self._parts: defaultdict[int, _Parts] = defaultdict(_Parts)
        self._summary: inference_pb2.GenerateSummary | None = None

    def add(self, response: inference_pb2.GenerateResponse) -> inference_pb2.TokenChunk | None:
        """The chunk, None for the summary."""
        if response.WhichOneof("message") == "summary":
            self._summary = response.summary
            return None
        self._parts[response.chunk.choice_index].add(response.chunk)
        return response.chunk

    def answer(self) -> Answer:
        """The whole; raises Unavailable when the summary, which is the last message, has not come."""
        summary = self._summary
        if summary is None:
            raise Unavailable("the answer is not complete: its summary has not come")
        # A router of before there were several answers says nothing of each.
        reasons = [choice.finish_reason for choice in summary.choices] or [summary.finish_reason]
        choices = tuple(self._parts[index].choice(index, reason) for index, reason in enumerate(reasons))
        return Answer(
            text=choices[0].text,
            token_ids=choices[0].token_ids,
            finish_reason=choices[0].finish_reason,
            usage=summary.usage,
            timings=summary.timings,
            route=summary.route,
            request_id=summary.request_id,
            model=summary.model,
            choices=choices,
        )
