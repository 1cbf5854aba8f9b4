"""From the answer's messages to chat completions and their chunks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict

from triptych.v1 import common_pb2, inference_pb2

_FINISH_REASONS: dict[int, str] = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    # OpenAI has no word for it; clients know what a stop is.
    common_pb2.FINISH_REASON_ABORTED: "stop",
}
DONE = b"data: [DONE]\n\n"
# Made once: `json.dumps` with separators makes an encoder for each call, a tenth of what an event costs.
_JSON = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True)
class AnswerHead:
    """What every object of one answer carries."""

    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class WholeAnswer:
    """Collects the messages of an answer that is not streamed."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, list[dict[str, Any]]] = {}
        self._summary = inference_pb2.GenerateSummary()

    async def deliver(self, response: inference_pb2.GenerateResponse) -> None:
        """Adds a message."""
        if response.WhichOneof("message") == "summary":
            self._summary = response.summary
            return
        chunk = response.chunk
        self._texts.setdefault(chunk.choice_index, []).append(chunk.text)
        if chunk.logprobs:
            self._logprobs.setdefault(chunk.choice_index, []).extend(_logprob(entry) for entry in chunk.logprobs)

    def body(self) -> dict[str, Any]:
        """The chat completion; call it after the summary has come."""
        completion = self._head.object("chat.completion", [self._choice(*end) for end in _ends(self._summary)])
        completion["usage"] = _usage(self._summary.usage)
        completion["triptych"] = _extension(self._summary)
        return completion

    def _choice(self, index: int, finish_reason: int) -> dict[str, Any]:
        logprobs = self._logprobs.get(index)
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(self._texts.get(index, ())), "refusal": None},
            "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
            "finish_reason": _FINISH_REASONS.get(finish_reason, "stop"),
        }


class StreamedAnswer:
    """Turns messages into server-sent events.

    The role comes with the first text of a choice and the finish reason with its last: chunks without tokens would
    count as tokens on the clocks of clients.
    """

    def __init__(self, head: AnswerHead, includes_usage: bool) -> None:
        self._head = head
        self._includes_usage = includes_usage
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def events(self, response: inference_pb2.GenerateResponse) -> bytes:
        """The events of a message; may be empty."""
        if response.WhichOneof("message") == "summary":
            return self._end(response.summary)
        chunk = response.chunk
        if not chunk.text and not chunk.logprobs and not chunk.finish_reason:
            return b""
        return self._chunk(chunk.choice_index, chunk.text, chunk.logprobs, chunk.finish_reason)

    def _chunk(self, index: int, text: str, logprobs: Sequence[common_pb2.TokenLogprob], finish_reason: int) -> bytes:
        delta: dict[str, Any] = {"content": text} if text or index not in self._begun else {}
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", **delta}
        if finish_reason:
            self._ended.add(index)
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": [_logprob(entry) for entry in logprobs], "refusal": None} if logprobs else None,
            "finish_reason": _FINISH_REASONS.get(finish_reason) if finish_reason else None,
        }
        return self._event([choice])

    def _end(self, summary: inference_pb2.GenerateSummary) -> bytes:
        """What a choice's own chunks did not tell, then usage where it was asked for."""
        late = [self._chunk(index, "", (), reason) for index, reason in _ends(summary) if index not in self._ended]
        if self._includes_usage:
            late.append(self._event([], usage=_usage(summary.usage), triptych=_extension(summary)))
        return b"".join([*late, DONE])

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        body = self._head.object("chat.completion.chunk", choices)
        if self._includes_usage:
            body["usage"] = None
        return event(body | more)


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event. JSON keeps to ASCII: no line separator of any kind can stand in it."""
    return b"data: " + _JSON.encode(body).encode() + b"\n\n"


def _ends(summary: inference_pb2.GenerateSummary) -> list[tuple[int, int]]:
    """Choices with what ended them."""
    ends = [(choice.choice_index, int(choice.finish_reason)) for choice in summary.choices]
    return ends or [(0, int(summary.finish_reason))]


def _usage(usage: common_pb2.Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
    }


def _extension(summary: inference_pb2.GenerateSummary) -> dict[str, Any]:
    """Times by stage, who worked, over which lanes, and the tokens of media: as the summary of the gRPC API."""
    return {
        "request_id": summary.request_id,
        "media_tokens": summary.usage.media_tokens,
        "timings": _plain(summary.timings),
        "route": _plain(summary.route),
    }


def _plain(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _logprob(entry: common_pb2.TokenLogprob) -> dict[str, Any]:
    return {
        **_token(entry),
        "top_logprobs": [_token(top) for top in entry.top],
    }


def _token(entry: common_pb2.TokenLogprob | common_pb2.TopLogprob) -> dict[str, Any]:
    return {
        "token": entry.token.decode("utf-8", "replace"),
        "logprob": entry.logprob,
        "bytes": list(entry.token),
    }
