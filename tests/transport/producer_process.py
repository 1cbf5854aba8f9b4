"""A producer in a process of its own, so that a test can kill it. Prints its id and port.

Tickets "held" and "transfer" have a tensor of 8 MiB; "pending" is announced and never granted.
"""

from __future__ import annotations

import asyncio
import json

import torch

from triptych.config import TransportSection
from triptych.rpc.server import RpcServer
from triptych.transport.host import new_incarnation_id
from triptych.transport.lease import LeaseTable
from triptych.transport.service import SERVICE_NAME, TensorService
from triptych.transport.wire import add_tensor_service


async def main() -> None:
    transport = TransportSection(shared_memory_bytes=1 << 25)
    producer_id = new_incarnation_id("encoder")
    leases = LeaseTable(transport.lease_s, transport.unknown_ticket_wait_s)
    server = RpcServer("127.0.0.1", 0, 1 << 23)
    service = TensorService(leases, producer_id, "weights-1", transport)
    server.add(add_tensor_service, service, SERVICE_NAME)
    port = await server.start()
    leases.expect("pending")
    for ticket_id in ("held", "transfer"):
        leases.grant(ticket_id, torch.ones(2048, 1024))
    print(json.dumps([producer_id, port]), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
