"""AnsweringService: the one thing that gRPC and HTTP both call to have a request answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from router.api.metrics import OUTCOME_OK, RequestMetrics, RouterMetrics
from router.dispatch.byte_budget import ByteBudget
from router.dispatch.dispatcher import Dispatcher
from triptych.config import DefaultsSection, DeploymentConfig
from triptych.errors import Cancelled, DeadlineExceeded, InternalError, TriptychError
from triptych.rpc.deadline import Deadline
from triptych.v1 import inference_pb2

# The router gives up a little before the caller's deadline, so that the caller is told why and not just cut off.
STATUS_MARGIN_SHARE = 0.05
MAX_STATUS_MARGIN_S = 0.25

# Takes one message to the client; returns when the client's connection can take more.
Deliver = Callable[[inference_pb2.GenerateResponse], Awaitable[None]]


class AnsweringService:
    """Bounds a request in time and bytes, has it answered, and counts how it went. Lives on one event loop."""

    def __init__(
        self, dispatcher: Dispatcher, defaults: DefaultsSection, budget: ByteBudget, metrics: RouterMetrics
    ) -> None:
        self.budget = budget
        self.metrics = metrics
        self._dispatcher = dispatcher
        self._max_timeout_s = defaults.timeout_s

    @classmethod
    def over(cls, dispatcher: Dispatcher, config: DeploymentConfig, model_name: str) -> AnsweringService:
        """With a budget and metrics of its own."""
        budget = ByteBudget(config.limits.max_pending_bytes)
        metrics = RouterMetrics(model_name, lambda: dispatcher.num_pending)
        return cls(dispatcher, config.defaults, budget, metrics)

    async def answer(
        self,
        request: inference_pb2.GenerateRequest,
        timeout_s: float | None,
        deliver: Deliver,
        clock: RequestMetrics,
        tenant: str = "",
    ) -> None:
        """Gives chunks, then the summary, to `deliver`. Cancelling the task cancels the request on every actor.

        A request without a timeout, or with a longer one, gets defaults.timeout_s. The time that `deliver` takes
        counts: a client that stops reading must not keep its place in the router for ever. `clock` was begun when the
        request arrived and is ended here; `tenant` is the name of the caller's token. Raises what
        `Dispatcher.generate` raises, and DeadlineExceeded.
        """
        try:
            with self.budget.hold(request.ByteSize()):
                await self._answer(request, self._granted_s(timeout_s), deliver, clock, tenant)
        except TriptychError as error:
            clock.end(outcome_of(error))
            raise
        except asyncio.CancelledError:
            clock.end(outcome_of(Cancelled("")))
            raise
        except Exception:
            clock.end(outcome_of(InternalError("")))
            raise
        clock.end(OUTCOME_OK)

    async def _answer(
        self,
        request: inference_pb2.GenerateRequest,
        granted_s: float,
        deliver: Deliver,
        clock: RequestMetrics,
        tenant: str,
    ) -> None:
        deadline = Deadline.after(granted_s - min(STATUS_MARGIN_SHARE * granted_s, MAX_STATUS_MARGIN_S))
        try:
            async with (
                asyncio.timeout(granted_s),
                aclosing(self._dispatcher.generate(request, deadline, tenant)) as responses,
            ):
                async for response in responses:
                    clock.note(response)
                    await deliver(response)
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


def outcome_of(error: TriptychError) -> str:
    """Label of an error in the metrics: its class, as deadline_exceeded."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
