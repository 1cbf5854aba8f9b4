"""The tokens of one request, each once, over as many walks as it takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from router.dispatch.admission import Turn
from router.dispatch.attempts import Attempts
from router.dispatch.chunk_pace import ChunkPace
from router.dispatch.loads import LoadLedger
from router.dispatch.placement import Placement
from router.dispatch.placer import Placer
from router.dispatch.prepared_request import PreparedRequest
from router.dispatch.remote_failure import RETRYABLE
from router.dispatch.running_walk import RunningWalk, first_with_tokens
from router.dispatch.stage_calls import StageCalls
from router.dispatch.stage_requests import StageRequests
from router.dispatch.step_streams import StepStreams
from router.dispatch.tickets import TicketMaker
from router.dispatch.token_queue import TokenQueue, Tokens
from router.dispatch.walk import Walk
from router.dispatch.walk_record import WalkRecord
from triptych.errors import Overloaded
from triptych.rpc.deadline import Deadline
from triptych.v1 import common_pb2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WalkResources:
    """What every walk of a router shares."""

    placer: Placer
    calls: StageCalls
    streams: StepStreams
    loads: LoadLedger
    tickets: TicketMaker
    pace: ChunkPace


class Generation:
    """Begins the walk anew when actors die under it: the prompt is then the request's own and the tokens so far.

    The sampler is keyed by seed and position, so the tokens are those that an undisturbed walk would have given. The n
    answers of a request share a walk; when that fails each goes on by itself, for their prompts differ from then on.
    token_ids: what was generated already of a single answer.
    """

    def __init__(
        self,
        request: PreparedRequest,
        resources: WalkResources,
        max_attempts: int,
        deadline: Deadline,
        turn: Turn,
        token_ids: Sequence[int] = (),
    ) -> None:
        self._request = request
        self._resources = resources
        self._deadline = deadline
        self._turn = turn
        self._attempts = Attempts(max_attempts, deadline, resources.placer.has_others)
        self._token_ids = {index: list(token_ids) for index in range(request.sampling.n)}
        self._unfinished = set(self._token_ids)
        self._walk: Walk | None = None
        self._num_walks = 0
        self._parts: dict[int, Generation] = {}

    @property
    def record(self) -> WalkRecord | None:
        """Of the latest walk; of those that answers took by themselves the first."""
        records = [part.record for part in self._parts.values() if part.record is not None]
        if records:
            return records[0]
        return None if self._walk is None else self._walk.record

    @property
    def num_attempts(self) -> int:
        """How often a walk was begun, those that answers took by themselves counted as one."""
        return self._num_walks + max((part.num_attempts for part in self._parts.values()), default=0)

    async def tokens(self) -> AsyncGenerator[Tokens, None]:
        """Tokens as they come; the last ones of each answer carry its finish reason. Close the generator to end the
        walk early.

        Raises what the walk raised when no other attempt can mend it or none is left, and Unavailable, naming the
        stage, when there is no actor to walk to.
        """
        placer = self._resources.placer
        while True:
            self._num_walks += 1
            running = await self._run_walk()
            try:
                async with aclosing(running.tokens()) as arriving:
                    async for tokens in arriving:
                        self._note(tokens)
                        yield tokens
                placer.note_walk(running.walk.record, self._request)
                return
            except (*RETRYABLE, Overloaded) as error:
                failed_actors = running.walk.record.failed_actors
                placer.note_failure(failed_actors, error)
                pause_s = self._attempts.pause_s(error, failed_actors)
                if pause_s is None:
                    raise
                logger.warning(
                    "request %s: attempt %d failed after %d tokens, trying again: %s",
                    self._request.request_id,
                    self._num_walks,
                    sum(map(len, self._token_ids.values())),
                    error,
                )
            finally:
                await running.end()
            await asyncio.sleep(pause_s)
            self._turn.begin_again()
            if self._request.sampling.n > 1 and any(self._token_ids.values()):
                async with aclosing(self._go_on_apart()) as arriving:
                    async for tokens in arriving:
                        yield tokens
                return
            if len(self._token_ids[0]) >= self._request.sampling.max_tokens or not self._unfinished:
                yield Tokens((), common_pb2.FINISH_REASON_LENGTH)
                return

    def stop_choice(self, choice_index: int) -> None:
        """This answer is long enough, while others go on; what still comes of it means nothing."""
        self._unfinished.discard(choice_index)
        if self._parts:
            self._parts[choice_index].stop_choice(0)
        elif self._walk is not None:
            self._walk.stop_choice(choice_index)

    def _note(self, tokens: Tokens) -> None:
        self._token_ids[tokens.choice_index].extend(tokens.token_ids)
        if tokens.is_last:
            self._unfinished.discard(tokens.choice_index)

    async def _go_on_apart(self) -> AsyncGenerator[Tokens, None]:
        """The rest of every answer that has not ended, each on walks of its own."""
        self._parts = {
            index: Generation(
                self._request.of_choice(index),
                self._resources,
                self._attempts.num_left,
                self._deadline,
                self._turn,
                self._token_ids[index],
            )
            for index in sorted(self._unfinished)
        }
        output = TokenQueue(self._parts)
        tasks = [asyncio.create_task(_forward(part, index, output)) for index, part in self._parts.items()]
        try:
            while not output.is_done:
                yield await output.take()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_walk(self) -> RunningWalk:
        """A walk under way: the first, or where encoders are unusually slow the first of two that has tokens."""
        avoid = self._attempts.avoid
        running = self._begin(await self._place(avoid))
        self._walk = running.walk
        delay_s = self._resources.placer.hedge_delay_s(self._request, running.walk.record.placement)
        if delay_s is None:
            return running

        async def begin_second() -> RunningWalk:
            self._resources.placer.note_hedge()
            logger.info("request %s: no tokens after %.3f s, hedged", self._request.request_id, delay_s)
            slow = {member.actor_id for member in running.walk.record.placement.encoders}
            return self._begin(await self._place(avoid | slow))

        chosen = await first_with_tokens(running, delay_s, begin_second)
        self._walk = chosen.walk
        return chosen

    async def _place(self, avoid: set[str]) -> Placement:
        return await self._resources.placer.place(self._request, self._deadline, avoid)

    def _begin(self, placement: Placement) -> RunningWalk:
        resources = self._resources
        requests = StageRequests.make(
            self._request, self._token_ids[0], placement, resources.tickets, resources.streams.router_id
        )
        walk = Walk(requests, placement, resources.calls, resources.streams, resources.loads, self._turn)
        return RunningWalk(walk, self._request.sampling.n, self._deadline, resources.pace)


async def _forward(part: Generation, choice_index: int, output: TokenQueue) -> None:
    try:
        async with aclosing(part.tokens()) as arriving:
            async for tokens in arriving:
                output.put(replace(tokens, choice_index=choice_index))
    except Exception as error:
        output.fail(error)
