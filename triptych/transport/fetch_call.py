"""One Fetch stream as a consumer sees it: the request, the checked header, the chunks behind it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from triptych.errors import DeadlineExceeded, FailedPrecondition, IntegrityError, NotFound, Overloaded, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.rpc.status import rpc_errors
from triptych.transport.chunk_codec import Chunk, decode_chunk
from triptych.transport.header import check_header
from triptych.transport.lanes import (
    CUDA_MEMORY_FIELD,
    LANE_FIELD,
    LANE_MEMORY_FIELD,
    PRODUCER_FIELD,
    FetchOrder,
    LaneFailure,
    too_late,
)
from triptych.transport.wire import call_fetch
from triptych.v1.tensor_pb2 import FetchRequest, FetchResponse, PrefillOutcome, TensorHeader

T = TypeVar("T")


class FetchCall:
    """An open stream whose header has come and fits the ticket. `wait_s`: how long that took."""

    def __init__(self, call: Any, header: TensorHeader, wait_s: float) -> None:
        self.header = header
        self.wait_s = wait_s
        self._call = call

    @property
    def outcome(self) -> PrefillOutcome | None:
        return self.header.prefill if self.header.HasField("prefill") else None

    async def read_chunk(self) -> Chunk:
        """The next chunk. Raises IntegrityError when the stream ended or something else came."""
        message: Any = await self._call.read()
        chunk = None if message is grpc.aio.EOF else _parsed(decode_chunk, message)
        if chunk is None:
            raise IntegrityError("the stream ended before the tensor was complete", field="num_bytes")
        return chunk


@asynccontextmanager
async def open_fetch(channels: ChannelPool, consumer_id: str, order: FetchOrder, lane: str) -> AsyncIterator[FetchCall]:
    """Fetch over `lane`, wait for the header and check it. Leaving the block, however that is, ends the call.

    Raises what the producer raised; LaneFailure when it did not serve the lane; Unavailable when it is gone.
    """
    ticket = order.ticket
    request = FetchRequest(
        ticket_id=ticket.ticket_id,
        producer_id=ticket.producer_id,
        consumer_id=consumer_id,
        lane=lane,
        first_row=order.first_row,
    )
    start_s = time.monotonic()
    with _producer_errors(order), rpc_errors(ticket.producer_endpoint):
        timeout_s = order.deadline.next_hop_s(f"fetch ticket {ticket.ticket_id}")
        call = call_fetch(channels.get(ticket.producer_endpoint), request, timeout_s)
        try:
            message: Any = await call.read()
            response = None if message is grpc.aio.EOF else _parsed(FetchResponse.FromString, message)
            if response is None or not response.HasField("header"):
                raise IntegrityError(
                    f"ticket {ticket.ticket_id}: the stream did not begin with a header", field="header"
                )
            check_header(response.header, ticket, order.spec)
            yield FetchCall(call, response.header, time.monotonic() - start_s)
        finally:
            call.cancel()


def _parsed(parse: Callable[[bytes], T], message: bytes) -> T:
    try:
        return parse(message)
    except DecodeError:
        raise IntegrityError("what came on the stream is no FetchResponse", field="part") from None


@contextmanager
def _producer_errors(order: FetchOrder) -> Iterator[None]:
    """What the errors of a producer mean to a consumer."""
    ticket = order.ticket
    try:
        yield
    except NotFound as error:
        if error.field == PRODUCER_FIELD:
            raise Unavailable(f"{ticket.producer_endpoint}: {error.message}; the actor was replaced") from None
        raise
    except (Overloaded, FailedPrecondition) as error:
        if error.field in (LANE_FIELD, LANE_MEMORY_FIELD, CUDA_MEMORY_FIELD):
            raise LaneFailure(error) from None
        raise
    except DeadlineExceeded:
        if order.deadline.remaining_s() > 0:
            raise
        raise too_late(ticket) from None
