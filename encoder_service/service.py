"""EncoderService over gRPC: the stage's messages, and nothing else."""

from typing import Any

import grpc

from encoder_service.items import Embedding, EncodeItem
from encoder_service.stage import EncoderStage
from triptych.rpc.deadline import remaining_s
from triptych.transport.ticket import Ticket
from triptych.v1 import encoder_pb2, encoder_pb2_grpc


class EncoderService(encoder_pb2_grpc.EncoderServiceServicer):  # type: ignore[misc]
    """Errors leave as they are; the server's interceptor turns them into statuses.

    `default_timeout_s` stands for the deadline of a call that has none.
    """

    def __init__(self, stage: EncoderStage, default_timeout_s: float) -> None:
        self._stage = stage
        self._default_timeout_s = default_timeout_s

    async def Encode(
        self, request: encoder_pb2.EncodeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> encoder_pb2.EncodeResponse:
        """gRPC cancels this coroutine when the caller cancels or its deadline passes; the stage lets go then."""
        items = [EncodeItem(Ticket.from_proto(item.ticket), item.media) for item in request.items]
        embeddings = await self._stage.encode(items, remaining_s(context, self._default_timeout_s))
        return encoder_pb2.EncodeResponse(
            results=[
                _result(item.ticket.ticket_id, embedding) for item, embedding in zip(items, embeddings, strict=True)
            ]
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
