"""Fixtures of the transport tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from transport_pair import FINGERPRINT, MIB, TRANSPORT, Pair

from triptych.config import TransportSection
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import host_id, new_incarnation_id
from triptych.transport.lease import LeaseTable
from triptych.transport.service import SERVICE_NAME, TensorService
from triptych.transport.wire import add_tensor_service

MakePair = Callable[..., Any]


@pytest.fixture
async def make_pair() -> AsyncIterator[MakePair]:
    """`await make_pair(lanes=..., ...)`: keywords change TransportSection; `consumer=` another one for the consumer."""
    async with AsyncExitStack() as stack:

        async def make(
            *,
            consumer: TransportSection | None = None,
            fingerprint: str = FINGERPRINT,
            **changes: Any,
        ) -> Pair:
            transport = TRANSPORT.model_copy(update=changes)
            leases = LeaseTable(transport.lease_s, transport.unknown_ticket_wait_s)
            producer_id = new_incarnation_id("encoder")
            service = TensorService(leases, producer_id, fingerprint, transport)
            stack.callback(service.close)
            server = RpcServer("127.0.0.1", 0, 8 * MIB)
            server.add(add_tensor_service, service, SERVICE_NAME)
            endpoint = f"127.0.0.1:{await server.start()}"
            stack.push_async_callback(server.stop, 0)
            channels = ChannelPool(8 * MIB)
            stack.push_async_callback(channels.close)
            fetcher = TensorFetcher(channels, "consumer-1", host_id(), consumer or transport, FINGERPRINT)
            stack.push_async_callback(fetcher.close)
            return Pair(producer_id, endpoint, leases, service, server, fetcher, channels, transport)

        yield make
