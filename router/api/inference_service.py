"""InferenceService: what gRPC clients call."""

from __future__ import annotations

from typing import Any

import grpc

from router.api.answering import AnsweringService
from triptych.v1 import inference_pb2, inference_pb2_grpc

API = "grpc"


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):  # type: ignore[misc]
    """Hands requests on with the deadline of their call."""

    def __init__(self, answering: AnsweringService) -> None:
        self._answering = answering

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Chunks, then the summary. A call without a deadline, or with a longer one, gets defaults.timeout_s."""
        clock = self._answering.metrics.request(API)
        await self._answering.answer(request, context.time_remaining(), context.write, clock)
