"""The walk of a request: encode, prefill and decode, all called at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from functools import partial

from router.control.membership import Member
from router.dispatch.admission import Turn
from router.dispatch.client_fields import in_client_terms
from router.dispatch.decoded_tokens import DecodedTokens
from router.dispatch.first_cause import first_cause, wait_for_earlier_failures
from router.dispatch.loads import Load, LoadHold, LoadLedger
from router.dispatch.placement import Placement
from router.dispatch.stage_calls import StageCalls
from router.dispatch.stage_requests import EncodeShare, StageRequests
from router.dispatch.step_streams import StepStreams
from router.dispatch.token_queue import TokenQueue, Tokens
from router.dispatch.walk_record import WalkRecord
from triptych.errors import TriptychError
from triptych.rpc.deadline import Deadline
from triptych.v1 import language_pb2

# After the last token only figures are still to come; a walk does not wait longer for them.
LAST_RESPONSE_GRACE_S = 0.5

Leg = asyncio.Task[None]


class Walk:
    """One attempt at a request on the actors of one placement. `record` says how far it came, at any time.

    Holds its load on them from now on: `run` it, or `close` it.
    """

    def __init__(
        self,
        requests: StageRequests,
        placement: Placement,
        calls: StageCalls,
        streams: StepStreams,
        loads: LoadLedger,
        turn: Turn,
    ) -> None:
        self.record = WalkRecord(placement, unfinished=set(range(requests.num_choices)))
        self._requests = requests
        self._placement = placement
        self._calls = calls
        self._streams = streams
        self._loads = loads
        self._turn = turn
        self._stopped: set[int] = set()
        # Taken at once: whoever is placed next must see them.
        self._held = ExitStack()
        self._patches = [self._hold(share.encoder, Load(num_patches=share.num_patches)) for share in requests.shares]
        own_patches = 0 if requests.shares else requests.num_patches
        self._prompt = self._hold(
            placement.first_language_actor,
            Load(num_patches=own_patches, num_prompt_tokens=requests.num_prompt_tokens),
        )
        self._hold(placement.decode, Load(num_kv_tokens=requests.num_kv_tokens, num_requests=1))

    def close(self) -> None:
        """Gives the loads back, of a walk that was never run as well; idempotent."""
        self._held.close()

    def stop_choice(self, choice_index: int) -> None:
        """This answer is long enough, while others go on: its last tokens are to come soon."""
        self._stopped.add(choice_index)
        self._calls.abort_choice(self._placement.decode, self._requests.walk_id, choice_index)

    async def run(self, output: TokenQueue, deadline: Deadline) -> None:
        """Puts every token into `output` and returns when all legs are done.

        When one fails the others are cancelled, and the error that began it is raised. Whatever ends the walk, its
        calls are over and its loads and tickets are given back afterwards.
        """
        requests, placement = self._requests, self._placement
        with ExitStack() as held:
            held.callback(self.close)
            held.callback(self._release_tickets)
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            decoded = DecodedTokens(partial(self._pass_on, output, answered))
            held.enter_context(self._streams.subscribe(placement.decode, requests.walk_id, decoded))
            try:
                async with asyncio.TaskGroup() as group:
                    legs = [
                        group.create_task(self._encode(share, load, deadline))
                        for share, load in zip(requests.shares, self._patches, strict=True)
                    ]
                    if requests.prefill is not None:
                        legs.append(group.create_task(self._prefill(requests.prefill, tuple(legs), output, deadline)))
                    before_decode = tuple(legs)
                    legs.append(group.create_task(self._decode(before_decode, deadline)))
                    await self._until_answered(decoded, answered, before_decode)
                    await self._collect_figures(legs)
            except ExceptionGroup as failures:
                raise first_cause(failures) from None

    async def _encode(self, share: EncodeShare, load: LoadHold, deadline: Deadline) -> None:
        async with self._leg(share.encoder, (), share.client_fields):
            begun_at = time.monotonic()
            response = await self._calls.encode(share.encoder, share.request, deadline)
            self.record.note_encoded(response, time.monotonic() - begun_at)
            load.release()
            self._turn.note_encoded(share.num_patches)

    async def _prefill(
        self,
        request: language_pb2.PrefillRequest,
        earlier: Collection[Leg],
        output: TokenQueue,
        deadline: Deadline,
    ) -> None:
        member = self._placement.first_language_actor
        async with self._leg(member, earlier, self._requests.client_fields):
            response = await self._calls.prefill(member, request, deadline)
            self.record.prefill = response
            has_logprob = response.HasField("first_token_logprob")
            logprobs = (response.first_token_logprob.SerializeToString(),) if has_logprob else ()
            first = Tokens((response.first_token_id,), response.finish_reason, logprobs=logprobs)
            self.record.note_tokens(first)
            output.put(first)

    async def _decode(self, earlier: Collection[Leg], deadline: Deadline) -> None:
        async with self._leg(self._placement.decode, earlier, self._requests.client_fields):
            self.record.decode = await self._calls.decode(self._placement.decode, self._requests.decode, deadline)

    async def _until_answered(
        self, decoded: DecodedTokens, answered: asyncio.Future[None], earlier: Collection[Leg]
    ) -> None:
        """Lets through what comes on the step stream, behind the prefill's first token even when it came sooner."""
        async with self._leg(self._placement.decode, earlier, {}):
            if self._placement.prefill is not None:
                await asyncio.wait(earlier)
            decoded.let_through()
            if not self.record.is_answered:
                await decoded.wait_for(answered)

    def _pass_on(self, output: TokenQueue, answered: asyncio.Future[None], tokens: Tokens) -> None:
        if tokens.choice_index not in self.record.unfinished:
            return
        if not self.record.num_decoded:
            self._prompt.release()
            self._turn.note_decoding()
        self.record.num_decoded += len(tokens.token_ids)
        self.record.note_tokens(tokens)
        output.put(tokens)
        if self.record.is_answered and not answered.done():
            answered.set_result(None)
        elif tokens.choice_index in self._stopped and not tokens.is_last:
            # The word came before the actor had begun with it.
            self.stop_choice(tokens.choice_index)

    async def _collect_figures(self, legs: Collection[Leg]) -> None:
        """The answer is complete: waits shortly for the responses that tell timings, and ends what goes on longer."""
        timeout_s = 0 if self._is_ended_by_prefill else LAST_RESPONSE_GRACE_S
        _, late = await asyncio.wait(legs, timeout=timeout_s)
        for leg in late:
            leg.cancel()

    @asynccontextmanager
    async def _leg(
        self, member: Member, earlier: Collection[Leg], client_fields: dict[str, str]
    ) -> AsyncIterator[None]:
        """One leg's treatment of errors: noted, told in the client's terms, after those of the legs before it.

        An error after the answer is complete is none.
        """
        try:
            yield
        except TriptychError as error:
            if self.record.is_answered:
                return
            self.record.failed_actors.add(member.actor_id)
            await wait_for_earlier_failures(earlier)
            raise in_client_terms(error, client_fields) from None

    def _hold(self, member: Member, load: Load) -> LoadHold:
        return self._held.enter_context(self._loads.take(member.actor_id, load))

    @property
    def _is_ended_by_prefill(self) -> bool:
        """There is nothing to decode, and no pages to fetch."""
        prefill = self.record.prefill
        return prefill is not None and bool(prefill.finish_reason) and self._requests.num_choices == 1

    def _release_tickets(self) -> None:
        """Frees tensors that will not be fetched.

        Calls that were cancelled let go of theirs by themselves, unless they had just ended and their response was on
        its way: so all tickets are released that nobody is known to have used. Those without a tensor are no error.
        """
        record, requests, prefill = self.record, self._requests, self._placement.prefill
        if record.prefill is None and record.num_decoded == 0:
            for share in requests.shares:
                self._calls.release(share.encoder, share.ticket_ids)
        if prefill is not None and not self._is_ended_by_prefill and record.num_decoded == 0 and record.decode is None:
            self._calls.release(prefill, [requests.decode.kv_ticket.ticket_id])
