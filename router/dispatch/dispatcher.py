"""The way of a request through the router: admit, prepare, walk, turn tokens into text, sum up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path

from router.control.membership import Membership
from router.control.scaling.demand import Demand, Work
from router.dispatch.admission import Admission, AdmissionTurns, Turn
from router.dispatch.admission.stage_room import applicant, stage_room
from router.dispatch.answer_text import AnswerText
from router.dispatch.channel_sweeper import ChannelSweeper
from router.dispatch.choice_answer import ChoiceAnswer
from router.dispatch.chunk_pace import ChunkPace
from router.dispatch.dispatch_counts import DispatchCounts
from router.dispatch.generation import Generation, WalkResources
from router.dispatch.loads import LoadLedger
from router.dispatch.placer import Placer, PlacerSettings
from router.dispatch.preparation import Preparation
from router.dispatch.prepared_request import PreparedRequest
from router.dispatch.stage_calls import StageCalls
from router.dispatch.step_streams import StepStreams
from router.dispatch.summary import AnswerClock, make_summary
from router.dispatch.tickets import TicketMaker
from triptych.config import DeploymentConfig
from triptych.errors import DeadlineExceeded
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.telemetry.request_scope import note_span
from triptych.v1 import inference_pb2


class Dispatcher:
    """Answers requests with the actors of a membership. Lives on one event loop; reads the model's folder when made."""

    def __init__(
        self, config: DeploymentConfig, model_name: str, folder: Path, membership: Membership, channels: ChannelPool
    ) -> None:
        self._max_attempts = config.router.max_attempts
        self._model_name = model_name
        self._admission = Admission(config.limits.max_pending_requests)
        self._room = stage_room(membership, config)
        self._turns = AdmissionTurns(lambda: self._room, config.router.ageing_s)
        membership.on_change(partial(self._note_members, membership, config))
        self._preparation = Preparation(config, model_name, folder)
        self._loads = LoadLedger()
        self.demand = Demand(config.scaling)
        self._sweeper = ChannelSweeper(channels, membership, self._loads)
        text = ModelConfig.from_folder(folder).text
        # bfloat16 or float32, by the actors' device: the larger one, as a cache holds at least what this says.
        placer_settings = PlacerSettings(config, embedding_token_bytes=4 * text.hidden_size)
        self._resources = WalkResources(
            placer=Placer(placer_settings, membership, self._loads),
            calls=StageCalls(channels, membership),
            streams=StepStreams(channels, membership),
            loads=self._loads,
            pace=ChunkPace(config.router.max_chunks_per_s),
            tickets=TicketMaker(
                text,
                config.stages.prefill.page_size,
                config.transport.lease_s,
                config.transport.kv_part_bytes,
                config.transport.kv_layer_groups,
            ),
        )

    @property
    def num_pending(self) -> int:
        """Requests inside the router now."""
        return self._admission.num_pending

    def counts(self) -> DispatchCounts:
        """What waits, and how often the dispatcher had to help itself."""
        return self._resources.placer.counts(self._turns.num_waiting)

    def load_of(self, actor_id: str) -> int:
        """How busy this router keeps an actor: patches, prompt tokens and requests together; 0 when it is idle."""
        load = self._loads.of(actor_id)
        return load.num_patches + load.num_prompt_tokens + load.num_requests

    def work_on(self, actor_id: str) -> Work:
        """Patches and prompt tokens that this router gave to an actor and are not done."""
        load = self._loads.of(actor_id)
        return Work(load.num_patches, load.num_prompt_tokens)

    def unplaced(self) -> Work:
        """Of requests that wait for a turn, or for a stage that has no actor."""
        load = self._turns.waiting_load() + self._resources.placer.waiting_load
        return Work(load.num_patches, load.num_prompt_tokens)

    async def generate(
        self, request: inference_pb2.GenerateRequest, deadline: Deadline, tenant: str = ""
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Chunks as tokens come, then the summary. Closing the generator cancels the request on every actor.

        Requests of different tenants share the stages fairly.

        Raises TriptychErrors: Overloaded when the router is full, those of `Preparation`, Unavailable when a stage has
        no actor, DeadlineExceeded, and what the stages answered.
        """
        clock = AnswerClock(time.monotonic())
        with self._admission.admit():
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    prepared = await self._preparation.prepare(request)
            except TimeoutError:
                raise DeadlineExceeded("the deadline passed while the request was prepared") from None
            _note_wait("prepare", prepared.prepare_s)
            asking = applicant(tenant, prepared)
            self.demand.note_arrival(asking.load.num_patches, asking.load.num_prompt_tokens)
            async with self._turns.turn(asking, deadline) as turn:
                clock.admission_s = turn.waited_s
                _note_wait("admission", turn.waited_s)
                async with aclosing(self._answer(prepared, clock, deadline, turn)) as responses:
                    async for response in responses:
                        yield response

    async def close(self) -> None:
        """Ends the step streams and threads. Requests that still run fail with Unavailable."""
        await self._resources.streams.close()
        await self._resources.calls.close()
        await self._sweeper.close()
        self._preparation.close()

    async def _answer(
        self, request: PreparedRequest, clock: AnswerClock, deadline: Deadline, turn: Turn
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        generation = Generation(request, self._resources, self._max_attempts, deadline, turn)
        answers = [self._choice_answer(index, request) for index in range(request.sampling.n)]
        async with aclosing(generation.tokens()) as arriving:
            async for tokens in arriving:
                clock.note_tokens(time.monotonic())
                answer = answers[tokens.choice_index]
                chunk = answer.chunk(tokens)
                if chunk is not None:
                    yield inference_pb2.GenerateResponse(chunk=chunk)
                if all(answer.is_finished for answer in answers) and any(answer.is_stopped for answer in answers):
                    break
                if chunk is not None and answer.is_stopped:
                    generation.stop_choice(answer.index)
        summary = make_summary(self._model_name, request, generation, answers, clock)
        self.demand.note_answer(summary, clock.last_token_at - clock.first_token_at)
        yield inference_pb2.GenerateResponse(summary=summary)

    def _note_members(self, membership: Membership, config: DeploymentConfig) -> None:
        self._room = stage_room(membership, config)
        self._turns.wake()

    def _choice_answer(self, index: int, request: PreparedRequest) -> ChoiceAnswer:
        text = AnswerText(self._preparation.detokenizer(), request.sampling.stop)
        return ChoiceAnswer(index, text, self._preparation.bytes_of)


def _note_wait(name: str, seconds: float) -> None:
    """A span that ends now."""
    now_s = time.monotonic()
    note_span(name, now_s - seconds, now_s)
