"""AnsweringService: the one thing that gRPC and HTTP both call to have a request answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from types import MappingProxyType

from router.api.metrics import OUTCOME_OK, RequestMetrics, RouterMetrics
from router.api.request_report import report_answered, report_failed
from router.dispatch.byte_budget import ByteBudget
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.request_check import MAX_REQUEST_ID_LENGTH
from triptych.config import DefaultsSection, DeploymentConfig
from triptych.errors import Cancelled, DeadlineExceeded, InternalError, TriptychError
from triptych.rpc.deadline import Deadline
from triptych.telemetry.request_scope import request_scope
from triptych.telemetry.tracing import Tracing
from triptych.transport.ticket import new_id
from triptych.v1 import inference_pb2

# The router gives up a little before the caller's deadline, so that the caller is told why and not just cut off.
STATUS_MARGIN_SHARE = 0.05
MAX_STATUS_MARGIN_S = 0.25

# Takes one message to the client; returns when the client's connection can take more.
Deliver = Callable[[inference_pb2.GenerateResponse], Awaitable[None]]


class AnsweringService:
    """Bounds a request in time and bytes, has it answered, and counts how it went. Lives on one event loop."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        defaults: DefaultsSection,
        budget: ByteBudget,
        metrics: RouterMetrics,
        tracing: Tracing | None = None,
    ) -> None:
        self.budget = budget
        self.metrics = metrics
        self._dispatcher = dispatcher
        self._max_timeout_s = defaults.timeout_s
        self._tracing = tracing

    @classmethod
    def over(cls, dispatcher: Dispatcher, config: DeploymentConfig, model_name: str) -> AnsweringService:
        """With a budget, metrics and traces of its own. Raises ConfigurationError where traces can't be sent."""
        budget = ByteBudget(config.limits.max_pending_bytes)
        metrics = RouterMetrics(model_name, lambda: dispatcher.num_pending, dispatcher.counts)
        tracing = Tracing.open(config.telemetry, "router")
        return cls(dispatcher, config.defaults, budget, metrics, tracing)

    async def close(self) -> None:
        """Sends what is left of the traces."""
        if self._tracing is not None:
            await self._tracing.close()

    async def answer(
        self,
        request: inference_pb2.GenerateRequest,
        timeout_s: float | None,
        deliver: Deliver,
        clock: RequestMetrics,
        tenant: str = "",
        trace: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Gives chunks, then the summary, to `deliver`. Cancelling the task cancels the request on every actor.

        A request without a timeout, or with a longer one, gets defaults.timeout_s. The time that `deliver` takes
        counts: a client that stops reading must not keep its place in the router for ever. `clock` was begun when the
        request arrived and is ended here; `tenant` is the name of the caller's token, `trace` the headers that name the
        caller's own span. A request without an id gets one. Raises what `Dispatcher.generate` raises, and
        DeadlineExceeded.
        """
        request.request_id = request.request_id or new_id()
        with self._scope(request.request_id[:MAX_REQUEST_ID_LENGTH], clock, trace):
            try:
                with self.budget.hold(request.ByteSize()):
                    summary = await self._answer(request, self._granted_s(timeout_s), deliver, clock, tenant)
            except TriptychError as error:
                _end(clock, outcome_of(error), error)
                raise
            except asyncio.CancelledError:
                _end(clock, outcome_of(Cancelled("")))
                raise
            except Exception:
                _end(clock, outcome_of(InternalError("")))
                raise
            clock.end(OUTCOME_OK)
            report_answered(clock.api, summary)

    def _scope(self, request_id: str, clock: RequestMetrics, trace: Mapping[str, str]) -> AbstractContextManager[None]:
        if self._tracing is None:
            return request_scope(request_id)
        return self._tracing.span("request", request_id, trace, clock.begun_at)

    async def _answer(
        self,
        request: inference_pb2.GenerateRequest,
        granted_s: float,
        deliver: Deliver,
        clock: RequestMetrics,
        tenant: str,
    ) -> inference_pb2.GenerateSummary:
        deadline = Deadline.after(granted_s - min(STATUS_MARGIN_SHARE * granted_s, MAX_STATUS_MARGIN_S))
        try:
            async with (
                asyncio.timeout(granted_s),
                aclosing(self._dispatcher.generate(request, deadline, tenant)) as responses,
            ):
                response = inference_pb2.GenerateResponse()
                async for response in responses:
                    clock.note(response)
                    await deliver(response)
                return response.summary
        except DeadlineExceeded as error:
            raise self._too_late(granted_s, error.message) from None
        except TimeoutError:
            raise self._too_late(granted_s, "the client did not take its answer") from None

    def _granted_s(self, timeout_s: float | None) -> float:
        return self._max_timeout_s if timeout_s is None else min(max(timeout_s, 0.0), self._max_timeout_s)

    def _too_late(self, granted_s: float, reason: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the request was not finished within {granted_s:.1f} s ({reason}); calls may ask for up to "
            f"{self._max_timeout_s:.1f} s (defaults.timeout_s)",
            field="defaults.timeout_s",
        )


def _end(clock: RequestMetrics, outcome: str, error: TriptychError | None = None) -> None:
    clock.end(outcome)
    report_failed(clock.api, outcome, error)


def outcome_of(error: TriptychError) -> str:
    """Label of an error in the metrics: its class, as deadline_exceeded."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
