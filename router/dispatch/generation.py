"""The tokens of one request, each once, over as many walks as it takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from router.dispatch.loads import LoadLedger
from router.dispatch.placer import Placer
from router.dispatch.prepared_request import PreparedRequest
from router.dispatch.remote_failure import RETRYABLE
from router.dispatch.stage_calls import StageCalls
from router.dispatch.stage_requests import StageRequests
from router.dispatch.step_streams import StepStreams
from router.dispatch.tickets import TicketMaker
from router.dispatch.token_queue import TokenQueue, Tokens
from router.dispatch.walk import Walk
from router.dispatch.walk_record import WalkRecord
from triptych.rpc.deadline import Deadline
from triptych.v1 import common_pb2

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.05  # before the second attempt, four times as long before each further one


@dataclass(frozen=True)
class WalkResources:
    """What every walk of a router shares."""

    placer: Placer
    calls: StageCalls
    streams: StepStreams
    loads: LoadLedger
    tickets: TicketMaker


class Generation:
    """Begins the walk anew when actors die under it: the prompt is then the request's own and the tokens so far.

    The sampler is keyed by seed and position, so the tokens are those that an undisturbed walk would have given.
    `record` is that of the latest walk, `num_attempts` counts them.
    """

    def __init__(
        self, request: PreparedRequest, resources: WalkResources, max_attempts: int, deadline: Deadline
    ) -> None:
        self.record: WalkRecord | None = None
        self.num_attempts = 0
        self._request = request
        self._resources = resources
        self._max_attempts = max_attempts
        self._deadline = deadline
        self._token_ids: list[int] = []

    async def tokens(self) -> AsyncGenerator[Tokens, None]:
        """Tokens as they come; the last ones carry the finish reason. Close the generator to end the walk early.

        Raises what the walk raised when no other attempt can mend it or none is left, and Unavailable, naming the
        stage, when there is no actor to walk to.
        """
        avoid: set[str] = set()
        while True:
            self.num_attempts += 1
            walk = await self._begin_walk(avoid)
            self.record = walk.record
            try:
                async with aclosing(self._follow(walk)) as arriving:
                    async for tokens in arriving:
                        self._token_ids.extend(tokens.token_ids)
                        yield tokens
                self._resources.placer.note_walk(walk.record, self._request)
                return
            except RETRYABLE as error:
                if self.num_attempts >= self._max_attempts:
                    raise
                avoid |= walk.record.failed_actors
                logger.warning(
                    "request %s: attempt %d failed after %d tokens, trying again: %s",
                    self._request.request_id,
                    self.num_attempts,
                    len(self._token_ids),
                    error,
                )
            if len(self._token_ids) >= self._request.sampling.max_tokens:
                yield Tokens((), common_pb2.FINISH_REASON_LENGTH)
                return
            await asyncio.sleep(min(RETRY_PAUSE_S * 4 ** (self.num_attempts - 1), self._deadline.remaining_s()))

    async def _begin_walk(self, avoid: set[str]) -> Walk:
        resources = self._resources
        placement = await resources.placer.place(self._request, self._deadline, avoid)
        requests = StageRequests.make(
            self._request, self._token_ids, placement, resources.tickets, resources.streams.router_id
        )
        return Walk(requests, placement, resources.calls, resources.streams, resources.loads)

    async def _follow(self, walk: Walk) -> AsyncGenerator[Tokens, None]:
        """Runs a walk beside its reader: a slow reader finds what came meanwhile as one list."""
        output = TokenQueue()
        running = asyncio.create_task(_run(walk, output, self._deadline))
        try:
            while True:
                tokens = await output.take()
                if tokens.is_last:
                    await running
                yield tokens
                if tokens.is_last:
                    return
        finally:
            running.cancel()
            await asyncio.wait([running])


async def _run(walk: Walk, output: TokenQueue, deadline: Deadline) -> None:
    try:
        await walk.run(output, deadline)
    except Exception as error:
        output.fail(error)
