"""InferenceService: what clients call."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc

from router.dispatch.dispatcher import Dispatcher
from triptych.config import DefaultsSection
from triptych.errors import DeadlineExceeded
from triptych.rpc.deadline import Deadline, remaining_s
from triptych.v1 import inference_pb2, inference_pb2_grpc

# The router gives up a little before the caller's deadline, so that the caller is told why and not just cut off.
STATUS_MARGIN_SHARE = 0.05
MAX_STATUS_MARGIN_S = 0.25


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):  # type: ignore[misc]
    """Hands requests to the dispatcher with the deadline of their call."""

    def __init__(self, dispatcher: Dispatcher, defaults: DefaultsSection) -> None:
        self._dispatcher = dispatcher
        self._max_timeout_s = defaults.timeout_s

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Chunks, then the summary. A call without a deadline, or with a longer one, gets defaults.timeout_s."""
        granted_s = min(remaining_s(context, self._max_timeout_s), self._max_timeout_s)
        deadline = Deadline.after(granted_s - min(STATUS_MARGIN_SHARE * granted_s, MAX_STATUS_MARGIN_S))
        try:
            # The writes too: a client that stops reading must not keep its place in the router for ever.
            async with asyncio.timeout(granted_s), aclosing(self._dispatcher.generate(request, deadline)) as responses:
                async for response in responses:
                    await context.write(response)
        except DeadlineExceeded as error:
            raise self._too_late(granted_s, error.message) from None
        except TimeoutError:
            raise self._too_late(granted_s, "the client did not take its answer") from None

    def _too_late(self, granted_s: float, reason: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the request was not finished within {granted_s:.1f} s ({reason}); calls may ask for up to "
            f"{self._max_timeout_s:.1f} s (defaults.timeout_s)",
            field="defaults.timeout_s",
        )
