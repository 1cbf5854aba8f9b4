"""Calls straight to the actors of a split system, past the router: good ones, for an attack to change."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
from attack_helpers import QUESTION, Attacker, Outcome, circle, failure, image_part, text_part, user_request

from router.control.membership import Member, StageName
from router.dispatch.placement import Placement
from router.dispatch.preparation import Preparation
from router.dispatch.stage_requests import StageRequests
from router.dispatch.tickets import TicketMaker
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.rpc.channels import channel_options
from triptych.v1 import (
    common_pb2,
    encoder_pb2,
    encoder_pb2_grpc,
    language_pb2,
    language_pb2_grpc,
    tensor_pb2,
    tensor_pb2_grpc,
)

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
GONE, UNKNOWN_TICKET = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND
TOO_LATE = grpc.StatusCode.DEADLINE_EXCEEDED
HUGE_GRID = common_pb2.Grid(t=2**31, h=2**31, w=2**31)


class ActorCalls:
    """The walk of one request by hand. Every call of `requests()` has new ids, tickets and a picture of its own: what
    an encoder has in its cache it does not look at."""

    def __init__(self, attacker: Attacker) -> None:
        system = attacker.system
        config, folder = system.config, Path(system.config.model.path)
        self.attacker = attacker
        members = system.membership.all_members()
        by_stage = {member.stage: member for member in members}
        # Where one colocated actor does everything, it stands for all three.
        self.encoder, self.prefill, self.decode = (
            by_stage.get(stage, members[0]) for stage in (StageName.ENCODER, StageName.PREFILL, StageName.DECODE)
        )
        self._preparation = Preparation(config, "tiny", folder)
        text = ModelConfig.from_folder(folder).text
        self._tickets = TicketMaker(text, config.stages.prefill.page_size, config.transport.lease_s)
        self._num_requests = 0
        self._channels: dict[str, grpc.aio.Channel] = {}

    def requests(self) -> StageRequests:
        self._num_requests += 1
        picture = circle() + self._num_requests.to_bytes(4, "big")
        prepared = self._preparation.prepare_now(user_request(image_part(picture), text_part(QUESTION)))
        placement = Placement((self.encoder,), self.prefill, self.decode)
        if self.decode.stage is StageName.PREFILL_DECODE:
            placement = Placement((), None, self.decode)
        return StageRequests.make(prepared, (), placement, self._tickets, "attacker")

    async def encode(self, request: encoder_pb2.EncodeRequest, timeout_s: float = 5.0) -> Outcome:
        return await self.call(encoder_pb2_grpc.EncoderServiceStub, self.encoder, "Encode", request, timeout_s)

    async def run_prefill(self, request: language_pb2.PrefillRequest, timeout_s: float = 5.0) -> Outcome:
        return await self.call(language_pb2_grpc.LanguageServiceStub, self.prefill, "Prefill", request, timeout_s)

    async def run_decode(self, request: language_pb2.DecodeRequest, timeout_s: float = 5.0) -> Outcome:
        return await self.call(language_pb2_grpc.LanguageServiceStub, self.decode, "Decode", request, timeout_s)

    async def fetch(self, member: Member, timeout_s: float = 5.0, **fields: Any) -> Outcome:
        request = tensor_pb2.FetchRequest(
            **{"producer_id": member.actor_id, "lane": "grpc", "consumer_id": "x"} | fields
        )
        return await self.call(tensor_pb2_grpc.TensorServiceStub, member, "Fetch", request, timeout_s)

    async def release(self, member: Member, ticket_ids: list[str]) -> Outcome:
        request = tensor_pb2.ReleaseRequest(ticket_ids=ticket_ids)
        return await self.call(tensor_pb2_grpc.TensorServiceStub, member, "Release", request, 5.0)

    async def call(
        self, stub: Callable[..., Any], member: Member, method: str, request: Any, timeout_s: float
    ) -> Outcome:
        """Reads an answer, or all of a stream, to its end."""
        call = getattr(stub(self.channel(member)), method)(request, timeout=timeout_s)
        started = time.monotonic()
        try:
            if isinstance(call, grpc.aio.UnaryStreamCall):
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return failure(error, time.monotonic() - started)
        return Outcome(grpc.StatusCode.OK, "", {}, seconds=time.monotonic() - started)

    def channel(self, member: Member) -> grpc.aio.Channel:
        if member.endpoint not in self._channels:
            self._channels[member.endpoint] = grpc.aio.insecure_channel(member.endpoint, options=channel_options(-1))
        return self._channels[member.endpoint]

    async def close(self) -> None:
        self._preparation.close()
        for channel in self._channels.values():
            await channel.close()


def pointing_at(ticket: common_pb2.Ticket, member: Member, endpoint: str = "") -> None:
    """Makes a ticket claim another producer."""
    ticket.producer_id = member.actor_id
    ticket.producer_endpoint = endpoint or member.endpoint


def set_fields(message: Any, values: Mapping[str, Any]) -> None:
    """Puts new values in the place of those that were there; None takes one away."""
    for name, value in values.items():
        message.ClearField(name)
        if value is not None:
            message.MergeFrom(type(message)(**{name: value}))


async def check(calls: ActorCalls, outcome: Outcome, code: grpc.StatusCode, says: str) -> None:
    """It ended soon, with this code and these words; nothing is held, and the next request is answered right."""
    assert outcome.code is code, f"{outcome.code.name}: {outcome.message}"
    assert says in outcome.message, outcome.message
    assert outcome.seconds < 2
    await calls.attacker.check_aftermath()
