"""TensorService: hands the tensors of a LeaseTable to their consumers."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import torch

from triptych.config import TransportSection
from triptych.errors import DeadlineExceeded, FailedPrecondition, InvalidRequest, NotFound
from triptych.rpc.deadline import Deadline
from triptych.transport.device_id import with_index
from triptych.transport.header import make_header
from triptych.transport.lanes import LANE_FIELD, PRODUCER_FIELD, ProducerLane
from triptych.transport.lease import LeaseTable
from triptych.transport.links.lane import LinkProducerLane
from triptych.transport.registry import ProducerSide, make_producer_lanes
from triptych.transport.ticket import TensorSpec, check_id
from triptych.v1 import tensor_pb2, tensor_pb2_grpc

SERVICE_NAME = tensor_pb2.DESCRIPTOR.services_by_name["TensorService"].full_name
MAX_TICKETS_A_CALL = 4_096

Context = grpc.aio.ServicerContext[Any, Any]


class TensorService(tensor_pb2_grpc.TensorServiceServicer):  # type: ignore[misc]
    """Serves Fetch, Release, Renew and OpenLink for one producer; owns its ends of the lanes (close it after the
    server). `device` is where the producer makes its tensors.

    Raises ConfigurationError for an unknown name in `transport.lanes`.
    """

    def __init__(
        self,
        leases: LeaseTable,
        producer_id: str,
        model_fingerprint: str,
        transport: TransportSection,
        device: torch.device | None = None,
    ) -> None:
        self._leases = leases
        self._producer_id = producer_id
        self._model_fingerprint = model_fingerprint
        # A caller that brings no deadline gets as long as a lease lives.
        self._default_timeout_s = transport.lease_s
        self._lanes = make_producer_lanes(
            ProducerSide(producer_id, transport, with_index(device or torch.device("cpu")))
        )

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of the lanes that this producer serves, best first: what tickets for it should say."""
        return tuple(self._lanes)

    async def Fetch(self, request: tensor_pb2.FetchRequest, context: Context) -> None:
        self._check_producer(request.producer_id)
        check_id(request.ticket_id, "ticket_id")
        lane = self._lane(request.lane)
        deadline = Deadline.of(context, self._default_timeout_s)
        async with self._leases.pinned(request.ticket_id, deadline.remaining_s()) as lease:
            TensorSpec.of(lease.tensor).from_row(request.first_row)
            rows = lease.tensor.detach()[request.first_row :]
            header = make_header(lease, rows, self._producer_id, self._model_fingerprint)
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    await lane.send(rows, header, context.write, deadline)
            except TimeoutError:
                raise DeadlineExceeded(f"ticket {request.ticket_id} was not handed over in time") from None

    async def Release(self, request: tensor_pb2.ReleaseRequest, context: Context) -> tensor_pb2.ReleaseResponse:
        self._leases.release(_checked(request.ticket_ids))
        return tensor_pb2.ReleaseResponse()

    async def Renew(self, request: tensor_pb2.RenewRequest, context: Context) -> tensor_pb2.RenewResponse:
        return tensor_pb2.RenewResponse(unknown_ticket_ids=self._leases.renew(_checked(request.ticket_ids)))

    async def OpenLink(self, requests: Any, context: Context) -> None:
        first: Any = await context.read()
        if first is grpc.aio.EOF or not first.HasField("open"):
            raise InvalidRequest("a link begins with `open`", field="open")
        self._check_producer(first.open.producer_id)
        check_id(first.open.consumer_id, "open.consumer_id")
        lane = self._lane(first.open.lane)
        if not isinstance(lane, LinkProducerLane):
            raise FailedPrecondition(f"lane {lane.name!r} has no links", field=LANE_FIELD)
        await lane.serve(first.open, context.read, context.write)

    def close_links(self) -> None:
        """End the links, whose streams would keep a server from stopping; idempotent."""
        for lane in self._lanes.values():
            if isinstance(lane, LinkProducerLane):
                lane.close()

    def close(self) -> None:
        """Let go of the lanes' memory; idempotent."""
        for lane in self._lanes.values():
            lane.close()

    def _check_producer(self, producer_id: str) -> None:
        if producer_id != self._producer_id:
            raise NotFound(
                f"producer {producer_id[:128]!r} is not here; this is {self._producer_id!r}", field=PRODUCER_FIELD
            )

    def _lane(self, name: str) -> ProducerLane:
        lane = self._lanes.get(name)
        if lane is None:
            served = ", ".join(self._lanes)
            raise FailedPrecondition(
                f"lane {name[:64]!r} is not served here; served: {served} (transport.lanes)", field=LANE_FIELD
            )
        return lane


def _checked(ticket_ids: Any) -> list[str]:
    if len(ticket_ids) > MAX_TICKETS_A_CALL:
        raise InvalidRequest(
            f"{len(ticket_ids)} ticket ids in one call; at most {MAX_TICKETS_A_CALL}", field="ticket_ids"
        )
    for ticket_id in ticket_ids:
        check_id(ticket_id, "ticket_ids")
    return list(ticket_ids)
