"""EncoderService over gRPC: the stage's messages, and nothing else."""

import logging
from collections.abc import Sequence
from typing import Any

import grpc

from encoder_service.items import Embedding, EncodeItem
from encoder_service.stage import EncoderStage
from triptych.rpc.deadline import remaining_s
from triptych.telemetry.call_scope import CallScopes
from triptych.telemetry.logs import figures
from triptych.telemetry.request_scope import note_span
from triptych.transport.ticket import Ticket
from triptych.v1 import encoder_pb2, encoder_pb2_grpc

logger = logging.getLogger(__name__)


class EncoderService(encoder_pb2_grpc.EncoderServiceServicer):  # type: ignore[misc]
    """Errors leave as they are; the server's interceptor turns them into statuses.

    `default_timeout_s` stands for the deadline of a call that has none.
    """

    def __init__(self, stage: EncoderStage, default_timeout_s: float, scopes: CallScopes | None = None) -> None:
        self._stage = stage
        self._default_timeout_s = default_timeout_s
        self._scopes = scopes or CallScopes()

    async def Encode(
        self, request: encoder_pb2.EncodeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> encoder_pb2.EncodeResponse:
        """gRPC cancels this coroutine when the caller cancels or its deadline passes; the stage lets go then."""
        items = [EncodeItem(Ticket.from_proto(item.ticket), item.media) for item in request.items]
        with self._scopes.of("EncoderService/Encode", request.request_id, context):
            embeddings = await self._stage.encode(items, remaining_s(context, self._default_timeout_s))
            _tell([embedding for embedding in embeddings if embedding is not None])
        return encoder_pb2.EncodeResponse(
            results=[
                _result(item.ticket.ticket_id, embedding)
                for item, embedding in zip(items, embeddings, strict=True)
                if embedding is not None
            ]
        )


def _tell(embeddings: Sequence[Embedding]) -> None:
    """Writes the log line, and a span for each item: from its decoding to its embedding, the times of the response."""
    for embedding in embeddings:
        note_span(
            "encode",
            embedding.finished_at - embedding.preprocess_s - embedding.encode_s,
            embedding.finished_at,
            queue_s=embedding.queue_s,
            preprocess_s=embedding.preprocess_s,
            encode_s=embedding.encode_s,
            batch_items=embedding.batch_items,
            is_cache_hit=embedding.is_cache_hit,
        )
    logger.info(
        "encoded",
        extra=figures(
            num_items=len(embeddings),
            num_cache_hits=sum(embedding.is_cache_hit for embedding in embeddings),
            queue_s=max((embedding.queue_s for embedding in embeddings), default=0.0),
            encode_s=max((embedding.preprocess_s + embedding.encode_s for embedding in embeddings), default=0.0),
        ),
    )


def _result(ticket_id: str, embedding: Embedding) -> encoder_pb2.EncodeResult:
    return encoder_pb2.EncodeResult(
        ticket_id=ticket_id,
        is_cache_hit=embedding.is_cache_hit,
        queue_s=embedding.queue_s,
        preprocess_s=embedding.preprocess_s,
        encode_s=embedding.encode_s,
        batch_items=embedding.batch_items,
    )
