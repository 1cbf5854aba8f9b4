"""LlmStage: prefill and decode without their network side. Joins the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Seq

from torch import Tensor

from llm_service.admission import TokenAdmission, TokenHold
from llm_service.answer_form import AnswerForms
from llm_service.calls import CallRegistry
from llm_service.embedder import Embedder
from llm_service.embeddings import EmbeddingSource
from llm_service.kv_cache import PageShape
from llm_service.kv_export import KvExport
from llm_service.kv_leases import KvLeases
from llm_service.kv_transfer import KvTransfer, check_kv_ticket
from llm_service.loading import LoadedModel, build_engine
from llm_service.parallel.leader import LeaderLink
from llm_service.request import GenerationRequest, RequestReader
from llm_service.results import DecodeResult, PrefillResult
from llm_service.role import Role
from llm_service.role_gate import RoleGate
from llm_service.role_switch import RoleSwitch
from llm_service.runs import Run, SequenceRuns
from llm_service.sequence import FinishReason, Sequence
from llm_service.stage_spans import note_decode, note_prefill
from llm_service.steps import StepChannel, StepStreams
from triptych.config import DeploymentConfig, LanguageSection
from triptych.errors import Cancelled, InternalError, InvalidRequest, Overloaded, TriptychError, Unavailable
from triptych.rpc.deadline import Deadline
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.lease import LeaseTable
from triptych.transport.parts import parts_of
from triptych.transport.ticket import Ticket
from triptych.v1 import admin_pb2

# Calls that were told to end let go of what they have within that.
_PAUSE_GRACE_S = 1.0


class LlmStage:
    """Prompts in; first tokens with KV pages under leases, or whole answers on step streams, out.

    Belongs to one event loop. `start` before use, `close` at the end. `embedder` only where the actor carries a tower.
    """

    def __init__(
        self,
        role: Role,
        config: DeploymentConfig,
        model: LoadedModel,
        fetcher: TensorFetcher,
        leases: LeaseTable,
        embedder: Embedder | None = None,
        link: LeaderLink | None = None,
    ) -> None:
        section: LanguageSection = getattr(config.stages, role)
        self.roles = RoleGate(role, config.control.role_grace_s)
        self.leases = leases
        self.steps = StepStreams(config.control.health_timeout_s)
        self._model = model
        self._fetcher = fetcher
        self._runs = SequenceRuns()
        self._engine = build_engine(model, section, self._runs.publish, link=link)
        max_tokens = self._engine.max_sequence_tokens
        is_cache_smaller = max_tokens == self._engine.scheduler.pool.num_pages * section.page_size
        limit_setting = f"stages.{role}.{'num_pages' if is_cache_smaller else 'max_context_tokens'}"
        self.reader = RequestReader(model.config, config.defaults, config.limits, max_tokens - 1, limit_setting)
        self._page_shape = PageShape.of_model(model.config.text, section.page_size, model.dtype)
        self._admission = TokenAdmission(section.max_waiting_tokens)
        supply = self._engine.supply if section.overlap_encode else None
        self._embeddings = EmbeddingSource(fetcher, embedder, model.config.text.hidden_size, supply)
        self._kv_transfer = KvTransfer(self._engine, fetcher, config.transport.kv_parts_under_way)
        self._forms = AnswerForms(config.model.path, model.config.text.vocab_size, model.config.eos_token_ids)
        self._calls = CallRegistry()
        self._role_switch = RoleSwitch(self.roles, config, model.device, self._engine, self._admission, self._calls)
        self._kv_leases = KvLeases(leases, self._page_shape.num_layers)
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def is_draining(self) -> bool:
        return self._calls.is_closed

    @property
    def is_alive(self) -> bool:
        """The engine's thread runs."""
        return self._engine.is_alive

    def start(self) -> None:
        self._engine.start()
        self._sweeper = asyncio.create_task(self.leases.run(), name="llm-lease-sweeper")

    async def wait_ended(self) -> None:
        """Returns when the engine computes no more, for whatever reason."""
        await asyncio.shield(asyncio.wrap_future(self._engine.ended))

    async def wait_ready(self) -> None:
        """Returns when the started engine can take steps: on a GPU kernels are compiled and graphs captured first."""
        await asyncio.to_thread(self._engine.wait_ready)

    async def prefill(self, request: GenerationRequest, kv_ticket: Ticket, deadline: Deadline) -> PrefillResult:
        """Computes the prompt and its first token, and grants the KV pages under `kv_ticket`.

        Fetches of the ticket wait meanwhile, and get the error when there is one.
        """
        try:
            self._check_can_prefill(request, kv_ticket)
            self._kv_leases.expect(kv_ticket, deadline.remaining_s())
            return await self._calls.run(request.request_id, self._prefill(request, kv_ticket, deadline), deadline)
        except BaseException as error:
            self._kv_leases.fail(kv_ticket, _for_waiting_consumers(error))
            raise

    async def decode(
        self, request: GenerationRequest, router_id: str, kv_ticket: Ticket | None, deadline: Deadline
    ) -> DecodeResult:
        """Generates to the end, tokens going to the stream of `router_id`; returns when the last of them was sent."""
        try:
            if kv_ticket is None:
                self._embeddings.check(request)
            else:
                # Nothing of them is needed here, but who sends pixels believes in a tower that is not there.
                self._embeddings.check_pixels(request)
                check_kv_ticket(kv_ticket, request.prompt, self._page_shape, self._model.fingerprint)
                _check_can_share(request)
            work = self._decode(request, router_id, kv_ticket, deadline)
            return await self._calls.run(request.request_id, work, deadline)
        except BaseException:
            # A failure may have come before the fetch, which would have let go of the pages by itself.
            if kv_ticket is not None:
                self._fetcher.release(kv_ticket)
            raise

    def abort(self, request_ids: Seq[str]) -> None:
        """Their calls raise Cancelled, their streams say ABORTED; unknown ids are nothing."""
        for request_id in request_ids:
            self._runs.tell_aborted(request_id)
            self._calls.end(request_id, Cancelled(f"request {request_id} was aborted"))

    def abort_choice(self, request_id: str, choice_index: int) -> None:
        """One answer's stream says ABORTED; the others of its request go on. An unknown one is nothing."""
        self._runs.abort_choice(self._engine, request_id, choice_index)

    def switch_role(self, role: Role, drain_s: float) -> int:
        """Takes work of `role` from now on; how many requests run on though they are of another. See `RoleSwitch`."""
        self._role_switch.to(role, drain_s)
        return len(self.roles.misplaced())

    async def drain(self, timeout_s: float) -> bool:
        """Takes no new requests from now on; True when all have ended and all KV pages were fetched in time."""
        self._calls.close()
        deadline = Deadline.after(timeout_s)
        return await self._calls.wait_idle(timeout_s) and await self.leases.wait_empty(deadline.remaining_s())

    async def pause(self, timeout_s: float) -> bool:
        """Takes no new requests until `resume`. What runs after `timeout_s` ends with Unavailable: it can go on
        elsewhere. True once nothing computes here. Pages under leases stay, and can be fetched."""
        self._calls.close()
        if not await self._calls.wait_idle(timeout_s):
            self._calls.end_all(Unavailable("the actor turns to other work; the request can go on elsewhere"))
        is_idle = await self._calls.wait_idle(_PAUSE_GRACE_S)
        if self._engine.is_alive:
            # What was aborted leaves the engine between two steps.
            await asyncio.wrap_future(self._engine.call(lambda: None))
        return is_idle

    def resume(self) -> None:
        """Takes requests again, after `pause`."""
        self._calls.open()

    async def close(self) -> None:
        """Ends what runs with Unavailable, lets go of everything. Idempotent."""
        self._calls.close()
        self._calls.end_all(Unavailable("the actor is stopping"))
        self.steps.close()
        await self._role_switch.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await asyncio.to_thread(self._engine.stop)
        self.leases.close()

    def counters(self) -> admin_pb2.LanguageCounters:
        """held_pages counts a page as often as it is held: by sequences in the cache, and by leases as a copy."""
        engine, scheduler = self._engine.counters, self._engine.scheduler
        num_running = len(scheduler.running)
        return admin_pb2.LanguageCounters(
            waiting_requests=max(self._calls.num_running - num_running, 0),
            running_requests=num_running,
            finished_requests=engine.num_finished,
            num_steps=engine.num_steps,
            num_preemptions=scheduler.num_preemptions,
            total_pages=scheduler.pool.num_pages,
            held_pages=scheduler.pool.num_held_pages + self._kv_leases.num_pages,
            cached_pages=scheduler.pool.num_cached_pages,
            prompt_tokens=engine.num_prompt_tokens,
            cached_prompt_tokens=engine.num_cached_prompt_tokens,
            generated_tokens=engine.num_generated_tokens,
            page_size=scheduler.pool.page_size,
            accepted_embeddings=self._embeddings.num_accepted,
        )

    async def _prefill(self, request: GenerationRequest, ticket: Ticket, deadline: Deadline) -> PrefillResult:
        with self._admission.hold(request.prompt.num_tokens) as hold:
            async with self._embeddings.arriving(request, deadline) as arrival:
                sequence, *others = await self._sequences(request, arrival.tensors)
                sequence.is_prefill_only, sequence.is_prompt_shared = True, bool(others)
                sequence.on_cached = None if others else arrival.skip
                parts = parts_of(ticket)
                sequence.kv_export = KvExport(parts) if parts else None
                work = self._runs.run(self._engine, [sequence], hold, None, self._kv_leases.grant_parts)
                (run,) = await arrival.beside(work)
        output = run.ended.result()
        note_prefill(sequence)
        self._kv_leases.grant(ticket, output)
        return PrefillResult.of(sequence, arrival.arrived(), output.finish_reason, output.logprob)

    async def _decode(
        self, request: GenerationRequest, router_id: str, kv_ticket: Ticket | None, deadline: Deadline
    ) -> DecodeResult:
        def on_lost(error: TriptychError) -> None:
            self._calls.end(request.request_id, error)

        with (
            self._admission.hold(request.prompt.num_tokens) as hold,
            self.steps.open(router_id, request.request_id, on_lost, request.sampling.n) as channel,
        ):
            if kv_ticket is None:
                result = await self._prefill_and_decode(request, hold, channel, deadline)
            else:
                result = await self._take_over_and_decode(request, kv_ticket, hold, channel, deadline)
            await channel.wait_delivered()
            return result

    async def _prefill_and_decode(
        self, request: GenerationRequest, hold: TokenHold, channel: StepChannel, deadline: Deadline
    ) -> DecodeResult:
        async with self._embeddings.arriving(request, deadline) as arrival:
            sequences = await self._sequences(request, arrival.tensors)
            sequences[0].on_cached = arrival.skip if len(sequences) == 1 else None
            runs = await arrival.beside(self._runs.run(self._engine, sequences, hold, channel))
        first = sequences[0]
        num_tokens = sum(run.num_tokens for run in runs)
        decode_s = max(first.first_token_s, *(sequence.finished_s for sequence in sequences)) - first.first_token_s
        note_prefill(first)
        note_decode(first.first_token_s, decode_s, num_tokens)
        return DecodeResult(
            _finish_reason(runs[0]),
            num_tokens=num_tokens,
            prefill=PrefillResult.of(first, arrival.arrived(), finish_reason=None),
            decode_s=decode_s,
            num_preemptions=sum(sequence.num_preemptions for sequence in sequences),
        )

    async def _take_over_and_decode(
        self, request: GenerationRequest, ticket: Ticket, hold: TokenHold, channel: StepChannel, deadline: Deadline
    ) -> DecodeResult:
        first, *others = sequences = await self._sequences(request, None if request.prompt.media else ())
        arrival = await self._kv_transfer.bring(first, ticket, deadline)
        assert first.parked_pages is not None
        for sequence in others:
            sequence.take_over_prompt(first.parked_pages)
        reason = arrival.finish_reason or self._engine.finish_reason(first)
        if reason is not None:
            channel.put((), reason)
            sequences = others
        started_s = time.monotonic()
        runs = await self._runs.run(self._engine, sequences, hold, channel) if sequences else []
        num_tokens = sum(run.num_tokens for run in runs)
        decode_s = max([started_s, *(sequence.finished_s for sequence in sequences)]) - started_s
        note_decode(started_s, decode_s, num_tokens)
        return DecodeResult(
            reason or _finish_reason(runs[0]),
            num_tokens=num_tokens,
            kv=arrival,
            decode_s=decode_s,
            num_preemptions=sum(sequence.num_preemptions for sequence in sequences),
        )

    async def _sequences(self, request: GenerationRequest, embeddings: Seq[Tensor | None] | None) -> list[Sequence]:
        """One for each answer."""
        sampling, prompt = request.sampling, request.prompt
        form = None
        if sampling.constraint is not None:
            generated = prompt.token_ids[prompt.num_tokens - prompt.num_generated :]
            form = await self._forms.make(sampling.constraint, generated)
        return [
            Sequence(
                request.request_id,
                prompt,
                sampling.of_choice(index),
                embeddings,
                choice_index=index,
                form=None if form is None else form.fork(),
            )
            for index in range(sampling.n)
        ]

    def _check_can_prefill(self, request: GenerationRequest, kv_ticket: Ticket) -> None:
        check_kv_ticket(kv_ticket, request.prompt, self._page_shape, self._model.fingerprint)
        self._embeddings.check(request)
        num_pages = self._engine.scheduler.pool.num_pages
        if self._kv_leases.num_pages >= num_pages:
            raise Overloaded(
                f"{self._kv_leases.num_pages} KV pages wait here for decode actors to fetch them, the limit is "
                f"{num_pages} (num_pages of the stage): more decode actors are needed",
                field="num_pages",
            )


def _finish_reason(run: Run) -> FinishReason:
    reason = run.ended.result().finish_reason
    assert reason is not None
    return reason


def _check_can_share(request: GenerationRequest) -> None:
    """Several answers from pages of elsewhere each compute the last token of the prompt anew."""
    media, num_tokens = request.prompt.media, request.prompt.num_tokens
    if request.sampling.n > 1 and media and media[-1].end == num_tokens:
        raise InvalidRequest(
            f"prompt.media[{len(media) - 1}] ends the prompt, expected text after it where sampling.n is above 1",
            field="prompt.media",
        )


def _for_waiting_consumers(error: BaseException) -> TriptychError:
    """What whoever waits for the tensor is told of a prefill that failed."""
    if isinstance(error, asyncio.CancelledError):
        return Cancelled("the prefill was cancelled or its deadline passed")
    return error if isinstance(error, TriptychError) else InternalError("the prefill failed")
