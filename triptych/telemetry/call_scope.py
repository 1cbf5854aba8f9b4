"""CallScopes: around the work of a call from a router, on an actor."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import grpc

from triptych.telemetry.request_scope import request_of_walk, request_scope
from triptych.telemetry.tracing import TRACEPARENT, Tracing, trace_headers


class CallScopes:
    """Log lines and spans of what runs inside a scope are of the call's request."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self._tracing = tracing

    def of(self, name: str, walk_id: str, context: grpc.aio.ServicerContext[Any, Any]) -> AbstractContextManager[None]:
        """For the body of a call's handler: a span `name`, where the caller says that the request is traced."""
        request_id = request_of_walk(walk_id)
        if self._tracing is None:
            return request_scope(request_id)
        headers = trace_headers(context.invocation_metadata())
        if TRACEPARENT not in headers:
            return request_scope(request_id)
        return self._tracing.span(name, request_id, headers)
