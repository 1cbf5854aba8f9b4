"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from router.api.answering import AnsweringService, outcome_of
from router.api.fetch.media_fetcher import MediaFetcher
from router.api.metrics import RequestMetrics
from router.api.openai.answer import DONE, AnswerHead, StreamedAnswer, WholeAnswer, event
from router.api.openai.conversion import Conversion, convert
from router.api.openai.http_body import read_body, while_connected
from router.api.openai.media_url import RemoteMedia
from router.api.openai.problem import error_body, in_http_terms
from router.dispatch.byte_budget import ByteHold
from triptych.config import DeploymentConfig
from triptych.errors import Cancelled, DeadlineExceeded, RequestTooLarge, TriptychError
from triptych.telemetry.tracing import trace_headers
from triptych.v1 import inference_pb2

API = "http"
# Smaller bodies are parsed at once: a thread costs more than it saves.
MAX_INLINE_BYTES = 32 * 1024
_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Asks nginx not to collect the stream.
    (b"x-accel-buffering", b"no"),
)


class ChatCompletions:
    """An ASGI application: reads, converts, fetches, and hands on to the service that gRPC calls too."""

    def __init__(
        self, config: DeploymentConfig, model_name: str, answering: AnsweringService, fetcher: MediaFetcher
    ) -> None:
        self._limits = config.limits
        self._max_timeout_s = config.defaults.timeout_s
        self._model_name = model_name
        self._answering = answering
        self._fetcher = fetcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises TriptychErrors until the answer has begun; a stream that breaks later ends with an error event.

        Cancelled is raised, and all work for the request ended, when the client goes away.
        """
        clock = self._answering.metrics.request(API)
        with self._answering.budget.hold() as hold:
            try:
                async with self._time_to_arrive():
                    body = await read_body(scope, receive, self._limits.max_message_bytes, hold)
            except TriptychError as error:
                clock.end(outcome_of(error))
                raise
            await while_connected(self._respond([body], hold, clock, scope, receive, send), receive)

    async def _respond(
        self, bodies: list[bytes], hold: ByteHold, clock: RequestMetrics, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """`bodies` has one, and is emptied: a text of megabytes is not kept beside what it was converted to."""
        try:
            conversion = await self._convert(bodies.pop(), scope["state"]["request_id"])
            async with self._time_to_arrive():
                await self._fetch(conversion, hold)
        except TriptychError as error:
            clock.end(outcome_of(error))
            raise
        hold.release()
        if conversion.is_streamed:
            await self._stream(conversion, scope, send, clock)
        else:
            await self._answer_whole(conversion, scope, receive, send, clock)

    async def _convert(self, body: bytes, request_id: str) -> Conversion:
        if len(body) <= MAX_INLINE_BYTES:
            return convert(body, request_id, self._limits)
        return await asyncio.to_thread(convert, body, request_id, self._limits)

    @asynccontextmanager
    async def _time_to_arrive(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._max_timeout_s):
                yield
        except TimeoutError:
            raise DeadlineExceeded(
                f"the request did not come within {self._max_timeout_s:g} s (defaults.timeout_s)",
                field="defaults.timeout_s",
            ) from None

    async def _fetch(self, conversion: Conversion, hold: ByteHold) -> None:
        """Fills in what URLs name: all are checked before the first is asked. The first failure ends the others."""
        for media in conversion.remote:
            self._fetcher.check(media.url, media.field)
        try:
            async with asyncio.TaskGroup() as group:
                for media in conversion.remote:
                    group.create_task(self._fetch_one(conversion.request, media, hold))
        except* TriptychError as errors:
            raise _first(errors) from None

    async def _fetch_one(self, request: inference_pb2.GenerateRequest, media: RemoteMedia, hold: ByteHold) -> None:
        max_bytes = min(media.max_bytes, self._limits.max_message_bytes)
        data = await self._fetcher.fetch(media.url, max_bytes, media.field)
        hold.add(len(data))
        media.target.data = data
        if request.ByteSize() > self._limits.max_message_bytes:
            raise RequestTooLarge(
                f"the request has more than {self._limits.max_message_bytes} bytes with what its URLs name "
                "(limits.max_message_bytes)",
                field=media.field,
            )

    async def _answer_whole(
        self, conversion: Conversion, scope: Scope, receive: Receive, send: Send, clock: RequestMetrics
    ) -> None:
        answer = WholeAnswer(self._head(conversion))
        tenant, trace = scope["state"]["tenant"], _trace(scope)
        await self._answering.answer(conversion.request, conversion.timeout_s, answer.deliver, clock, tenant, trace)
        await JSONResponse(answer.body())(scope, receive, send)

    async def _stream(self, conversion: Conversion, scope: Scope, send: Send, clock: RequestMetrics) -> None:
        """The status line waits for the first token, so that what goes wrong before it has a status of its own."""
        answer = StreamedAnswer(self._head(conversion), conversion.includes_usage)
        stream = _EventStream(send)

        async def deliver(response: inference_pb2.GenerateResponse) -> None:
            await stream.send(answer.events(response))

        try:
            tenant, trace = scope["state"]["tenant"], _trace(scope)
            await self._answering.answer(conversion.request, conversion.timeout_s, deliver, clock, tenant, trace)
        except TriptychError as error:
            if not stream.is_begun or isinstance(error, Cancelled):
                raise
            await stream.send(event(error_body(in_http_terms(error))) + DONE)
        await stream.end()

    def _head(self, conversion: Conversion) -> AnswerHead:
        return AnswerHead(conversion.request.request_id, self._model_name)


class _EventStream:
    """Server-sent events of one response. `send` waits while the client takes nothing and the socket is full."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_begun = False

    async def send(self, events: bytes) -> None:
        if not events:
            return
        await self._begin()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        if not self.is_begun:
            self.is_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_STREAM_HEADERS)})


def _trace(scope: Scope) -> dict[str, str]:
    """W3C trace context of the HTTP request."""
    return trace_headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])


def _first(errors: BaseExceptionGroup[Any]) -> TriptychError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
