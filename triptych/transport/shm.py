"""Lane "shm": the producer lays the rows into its slab under /dev/shm, the consumer maps and copies them out.

The Fetch stream stays open until the consumer has its copy. It then ends the call, which frees the piece of the slab;
so does its death, its cancellation, and the call's deadline.
"""

from __future__ import annotations

import asyncio

import torch

from triptych.errors import DeadlineExceeded, FailedPrecondition, IntegrityError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.transport.copying import run_copy
from triptych.transport.fetch_call import open_fetch
from triptych.transport.lanes import LANE_FIELD, Arrival, FetchOrder, LaneFailure, Write
from triptych.transport.shared_memory import SharedMemorySlab, read_slab
from triptych.transport.ticket import Ticket
from triptych.v1.tensor_pb2 import FetchResponse, SharedMemoryHandle, TensorHeader


class ShmProducerLane:
    """Producer's end; owns the slab, which the first tensor makes: who holds nothing for others needs none."""

    name = "shm"

    def __init__(self, producer_id: str, num_bytes: int, *, has_checksums: bool) -> None:
        self._producer_id = producer_id
        self._num_bytes = num_bytes
        self._has_checksums = has_checksums
        self._opened_slab: SharedMemorySlab | None = None

    @property
    def _slab(self) -> SharedMemorySlab:
        if self._opened_slab is None:
            try:
                self._opened_slab = SharedMemorySlab(self._producer_id, self._num_bytes)
            except OSError as error:
                raise FailedPrecondition(f"lane shm is off here: no shared memory: {error}", field=LANE_FIELD) from None
        return self._opened_slab

    async def send(self, rows: torch.Tensor, header: TensorHeader, write: Write, deadline: Deadline) -> None:
        if rows.nbytes == 0:
            await write(FetchResponse(header=header))
            return
        slab = self._slab
        extent = slab.allocate(rows.nbytes)
        try:
            crc32 = await run_copy(rows.nbytes, slab.write, extent, rows, self._has_checksums)
            handle = SharedMemoryHandle(name=slab.name, offset=extent.offset, crc32=crc32)
            header.shared_memory.CopyFrom(handle)
            await write(FetchResponse(header=header))
            # The consumer reads now; it ends the call when it is done.
            await asyncio.sleep(deadline.remaining_s())
            raise DeadlineExceeded("the consumer did not take the tensor out of shared memory in time")
        finally:
            slab.free(extent)

    def close(self) -> None:
        if self._opened_slab is not None:
            self._opened_slab.close()


class ShmConsumerLane:
    """Consumer's end."""

    name = "shm"

    def __init__(self, channels: ChannelPool, consumer_id: str, host_id: str) -> None:
        self._channels = channels
        self._consumer_id = consumer_id
        self._host_id = host_id

    def can_reach(self, ticket: Ticket) -> bool:
        return ticket.producer_host_id == self._host_id

    async def fetch(self, order: FetchOrder) -> Arrival:
        async with open_fetch(self._channels, self._consumer_id, order, self.name) as call:
            target = torch.empty(order.spec.shape, dtype=order.spec.dtype)
            handle = call.header.shared_memory
            crc32 = handle.crc32 if handle.HasField("crc32") else None
            if target.nbytes > 0:
                try:
                    await run_copy(target.nbytes, read_slab, handle.name, handle.offset, crc32, target)
                except (Unavailable, IntegrityError) as error:
                    raise LaneFailure(error) from None
            return Arrival(target, call.outcome, call.wait_s)

    async def close(self) -> None:
        """Nothing is held between calls."""
