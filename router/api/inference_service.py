"""InferenceService: what gRPC clients call."""

from __future__ import annotations

from typing import Any

import grpc

from router.api.answering import AnsweringService
from triptych.rpc.access import Access
from triptych.rpc.access_interceptor import authorization_of
from triptych.telemetry.tracing import trace_headers
from triptych.v1 import inference_pb2, inference_pb2_grpc

API = "grpc"


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):  # type: ignore[misc]
    """Hands requests on with the deadline of their call, and the name of its token where `access` asks for tokens."""

    def __init__(self, answering: AnsweringService, access: Access | None = None) -> None:
        self._answering = answering
        self._access = access

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Chunks, then the summary. A call without a deadline, or with a longer one, gets defaults.timeout_s."""
        clock = self._answering.metrics.request(API)
        trace = trace_headers(context.invocation_metadata())
        tenant = self._tenant(context)
        await self._answering.answer(request, context.time_remaining(), context.write, clock, tenant, trace)

    def _tenant(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        if self._access is None:
            return ""
        return self._access.caller(authorization_of(context.invocation_metadata())).name
