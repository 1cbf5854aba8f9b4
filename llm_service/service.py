"""LanguageService over gRPC: the stage's messages, and which role answers which call."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from llm_service.results import DecodeResult, PrefillResult
from llm_service.role_gate import Work
from llm_service.stage import LlmStage
from triptych.errors import FailedPrecondition, InvalidRequest
from triptych.rpc.deadline import Deadline
from triptych.telemetry.call_scope import CallScopes
from triptych.telemetry.logs import figures
from triptych.transport.ticket import Ticket, check_id
from triptych.v1 import language_pb2, language_pb2_grpc

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class LanguageService(language_pb2_grpc.LanguageServiceServicer):  # type: ignore[misc]
    """Errors leave as they are; the server's interceptor turns them into statuses.

    `default_timeout_s` stands for the deadline of a call that has none. gRPC cancels a handler when its caller cancels
    or the deadline passes, and the stage lets go then.
    """

    def __init__(self, stage: LlmStage, default_timeout_s: float, scopes: CallScopes | None = None) -> None:
        self._stage = stage
        self._default_timeout_s = default_timeout_s
        self._scopes = scopes or CallScopes()

    async def Prefill(self, request: language_pb2.PrefillRequest, context: Context) -> language_pb2.PrefillResponse:
        roles = self._stage.roles
        roles.check(Work.PREFILL)
        if not request.HasField("kv_ticket"):
            raise InvalidRequest("kv_ticket is missing, expected the name of the KV pages", field="kv_ticket")
        with (
            roles.hold(request.request_id, Work.PREFILL),
            self._scopes.of("LanguageService/Prefill", request.request_id, context),
        ):
            result = await self._stage.prefill(
                self._stage.reader.read(request),
                Ticket.from_proto(request.kv_ticket),
                Deadline.of(context, self._default_timeout_s),
            )
            logger.info("prefilled", extra=_prefill_figures(result))
        return _prefill_response(result)

    async def Decode(self, request: language_pb2.DecodeRequest, context: Context) -> language_pb2.DecodeResponse:
        roles, work = self._stage.roles, Work.DECODE if request.HasField("kv_ticket") else Work.PREFILL_DECODE
        roles.check(work)
        check_id(request.router_id, "router_id")
        with (
            roles.hold(request.request_id, work),
            self._scopes.of("LanguageService/Decode", request.request_id, context),
        ):
            result = await self._stage.decode(
                self._stage.reader.read(request),
                request.router_id,
                Ticket.from_proto(request.kv_ticket) if request.HasField("kv_ticket") else None,
                Deadline.of(context, self._default_timeout_s),
            )
            logger.info("decoded", extra=_decode_figures(result))
        return _decode_response(result)

    async def Abort(self, request: language_pb2.AbortRequest, context: Context) -> language_pb2.AbortResponse:
        self._stage.abort(request.request_ids)
        for choice in request.choices:
            self._stage.abort_choice(choice.request_id, choice.choice_index)
        return language_pb2.AbortResponse()

    async def StreamSteps(
        self, request: language_pb2.StreamStepsRequest, context: Context
    ) -> AsyncIterator[language_pb2.StreamStepsResponse]:
        check_id(request.router_id, "router_id")
        if not self._stage.roles.has_streams():
            raise FailedPrecondition("this actor has the role prefill and streams no tokens")
        # Closed at once when the router goes away, not when it is collected: that is what ends what the router began.
        async with aclosing(self._stage.steps.read(request.router_id)) as responses:
            async for response in responses:
                yield response


def _prefill_figures(result: PrefillResult) -> dict[str, Any]:
    """For the log: the times as the response tells them."""
    embeddings = result.embeddings
    return figures(
        cached_prompt_tokens=result.num_cached_prompt_tokens,
        queue_s=result.queue_s,
        prefill_s=result.prefill_s,
        embedding_transfer_s=embeddings.transfer_s,
        embedding_lanes=",".join(embeddings.lanes),
    )


def _decode_figures(result: DecodeResult) -> dict[str, Any]:
    kv = result.kv
    return figures(
        num_tokens=result.num_tokens,
        decode_s=result.decode_s,
        kv_transfer_s=0.0 if kv is None else kv.seconds,
        kv_lane="" if kv is None else kv.lane,
    )


def _prefill_response(result: PrefillResult) -> language_pb2.PrefillResponse:
    embeddings = result.embeddings
    response = language_pb2.PrefillResponse(
        first_token_id=result.first_token_id,
        cached_prompt_tokens=result.num_cached_prompt_tokens,
        embedding_transfer_s=embeddings.transfer_s,
        embedding_lanes=embeddings.lanes,
        queue_s=result.queue_s,
        prefill_s=result.prefill_s,
        encode_queue_s=embeddings.encode_queue_s,
        encode_s=embeddings.encode_s,
    )
    if result.finish_reason is not None:
        response.finish_reason = result.finish_reason.value
    if result.first_logprob is not None:
        response.first_token_logprob.CopyFrom(result.first_logprob.to_proto())
    return response


def _decode_response(result: DecodeResult) -> language_pb2.DecodeResponse:
    response = language_pb2.DecodeResponse(
        finish_reason=result.finish_reason.value,
        num_tokens=result.num_tokens,
        decode_s=result.decode_s,
        num_preemptions=result.num_preemptions,
    )
    if result.prefill is not None:
        response.prefill.CopyFrom(_prefill_response(result.prefill))
    if result.kv is not None:
        response.kv_transfer_s = result.kv.seconds
        response.kv_lane = result.kv.lane
    return response
