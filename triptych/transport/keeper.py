"""LeaseKeeper: tells producers which tickets this process still wants, and which it is done with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from triptych.errors import TriptychError
from triptych.rpc.channels import ChannelPool
from triptych.rpc.status import rpc_errors
from triptych.transport.ticket import Ticket
from triptych.v1.tensor_pb2 import ReleaseRequest, RenewRequest
from triptych.v1.tensor_pb2_grpc import TensorServiceStub

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
MAX_TICKETS_A_CALL = 1_024


class LeaseKeeper:
    """Heartbeats every lease_s / 3 for tickets inside `keep`; releases them afterwards, several to one call.

    A release that can't be delivered is logged and forgotten: the lease then ends by running out.
    """

    def __init__(self, channels: ChannelPool, lease_s: float) -> None:
        self._channels = channels
        self._interval_s = lease_s / 3
        # Endpoint -> tickets to release there, and the task that does so.
        self._done: dict[str, list[str]] = {}
        self._senders: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def keep(self, ticket: Ticket) -> AsyncIterator[None]:
        """Keep the lease of `ticket` alive while the block runs; release it when it is left, however that is."""
        heartbeat = asyncio.create_task(self._heartbeat(ticket))
        try:
            yield
        finally:
            heartbeat.cancel()
            self.release(ticket)

    def release(self, ticket: Ticket) -> None:
        """Tell the producer, without waiting for it, that the ticket is not wanted any more."""
        endpoint = ticket.producer_endpoint
        self._done.setdefault(endpoint, []).append(ticket.ticket_id)
        if endpoint not in self._senders:
            self._senders[endpoint] = asyncio.create_task(self._send_releases(endpoint))

    async def close(self) -> None:
        """Wait until the releases under way are delivered or have failed (each call has a deadline)."""
        while self._senders:
            await asyncio.gather(*self._senders.values())

    async def _send_releases(self, endpoint: str) -> None:
        try:
            while ticket_ids := self._take(endpoint):
                with rpc_errors(endpoint):
                    stub: Any = TensorServiceStub(self._channels.get(endpoint))
                    await stub.Release(ReleaseRequest(ticket_ids=ticket_ids), timeout=CALL_TIMEOUT_S)
        except TriptychError as error:
            logger.info("could not release tickets at %s; their leases will run out: %s", endpoint, error)
            self._done.pop(endpoint, None)
        finally:
            del self._senders[endpoint]

    def _take(self, endpoint: str) -> list[str]:
        waiting = self._done.pop(endpoint, [])
        if waiting[MAX_TICKETS_A_CALL:]:
            self._done[endpoint] = waiting[MAX_TICKETS_A_CALL:]
        return waiting[:MAX_TICKETS_A_CALL]

    async def _heartbeat(self, ticket: Ticket) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                with rpc_errors(ticket.producer_endpoint):
                    stub: Any = TensorServiceStub(self._channels.get(ticket.producer_endpoint))
                    await stub.Renew(
                        RenewRequest(ticket_ids=[ticket.ticket_id]), timeout=min(self._interval_s, CALL_TIMEOUT_S)
                    )
            except TriptychError as error:
                # The fetch itself notices a producer that is gone.
                logger.debug("heartbeat for ticket %s: %s", ticket.ticket_id, error)
