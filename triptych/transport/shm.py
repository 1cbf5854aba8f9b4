"""Lane "shm": the producer lays the rows into its slab under /dev/shm, the consumer maps them.

While the slab has room the consumer reads large tensors where they are, for as long as it likes: a lock that goes with
the tensor keeps the producer from that piece. Else it copies them out. The Fetch stream is open until the consumer has
the one or the other. It then ends the call, which frees the piece of the slab, or leaves it to its reader; so does the
consumer's death, its cancellation, and the call's deadline.
"""

from __future__ import annotations

import asyncio

import torch

from triptych.errors import DeadlineExceeded, FailedPrecondition, IntegrityError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.transport.copying import run_copy
from triptych.transport.fetch_call import open_fetch
from triptych.transport.landing import landing_memory
from triptych.transport.lanes import LANE_FIELD, Arrival, FetchOrder, LaneFailure, Write
from triptych.transport.shared_memory import SharedMemorySlab
from triptych.transport.slab_reader import SlabPiece, copy_out, read_in_place
from triptych.transport.ticket import Ticket
from triptych.v1.tensor_pb2 import FetchResponse, SharedMemoryHandle, TensorHeader

# Below this a copy costs less than a mapping, and an open file, of its own.
IN_PLACE_BYTES = 1 << 20


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
            piece, crc32 = await run_copy(rows.nbytes, slab.write, extent, rows, self._has_checksums)
            handle = SharedMemoryHandle(
                name=piece.name,
                offset=piece.offset,
                crc32=crc32,
                stamp=piece.stamp,
                # Half of the slab stays for tensors that move on at once.
                may_stay=rows.nbytes >= IN_PLACE_BYTES and 2 * slab.free_bytes >= slab.num_bytes,
            )
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
            handle, spec = call.header.shared_memory, order.spec
            if spec.num_bytes == 0:
                return Arrival(torch.empty(spec.shape, dtype=spec.dtype), call.outcome, call.wait_s)
            piece = SlabPiece(handle.name, handle.offset, spec.num_bytes, handle.stamp)
            # A checksum is worth something only of bytes that nobody else can change.
            crc32 = handle.crc32 if handle.HasField("crc32") else None
            try:
                if handle.may_stay and crc32 is None:
                    tensor = read_in_place(piece, spec)
                else:
                    tensor = landing_memory(spec)
                    await run_copy(spec.num_bytes, copy_out, piece, crc32, tensor)
            except (Unavailable, IntegrityError) as error:
                raise LaneFailure(error) from None
            return Arrival(tensor, call.outcome, call.wait_s)

    async def close(self) -> None:
        """Nothing is held between calls."""
