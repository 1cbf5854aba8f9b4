"""Lane "grpc": the rows in chunks on the Fetch stream, each with its offset and crc32. Works between any two actors."""

from __future__ import annotations

import torch

from triptych.errors import IntegrityError
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.transport.allocator import keep_message_memory
from triptych.transport.checksum import crc32_of_bytes
from triptych.transport.chunk_codec import Chunk, encode_chunk
from triptych.transport.copying import byte_array, run_copy
from triptych.transport.device_copy import DeviceCopies
from triptych.transport.fetch_call import open_fetch
from triptych.transport.landing import landing_memory
from triptych.transport.lanes import Arrival, FetchOrder, LaneFailure, Write
from triptych.transport.ticket import Ticket
from triptych.v1.tensor_pb2 import FetchResponse, TensorHeader


class GrpcProducerLane:
    """Producer's end: at most one chunk of `chunk_bytes` is in memory beside the tensor."""

    name = "grpc"

    def __init__(self, chunk_bytes: int) -> None:
        keep_message_memory()
        self._chunk_bytes = chunk_bytes
        self._copies = DeviceCopies()

    async def send(self, rows: torch.Tensor, header: TensorHeader, write: Write, deadline: Deadline) -> None:
        await write(FetchResponse(header=header))
        if rows.nbytes == 0:
            return
        on_host = rows if rows.device.type == "cpu" else await run_copy(rows.nbytes, self._copies.to_host, rows)
        data = byte_array(on_host.contiguous()).data
        for offset in range(0, len(data), self._chunk_bytes):
            piece = data[offset : offset + self._chunk_bytes]
            await write(encode_chunk(Chunk(offset, crc32_of_bytes(piece), piece)))

    def close(self) -> None:
        """Nothing is held between calls."""


class GrpcConsumerLane:
    """Consumer's end: chunks go straight into the tensor that is handed out."""

    name = "grpc"

    def __init__(self, channels: ChannelPool, consumer_id: str) -> None:
        keep_message_memory()
        self._channels = channels
        self._consumer_id = consumer_id

    def can_reach(self, ticket: Ticket) -> bool:
        return True

    async def fetch(self, order: FetchOrder) -> Arrival:
        async with open_fetch(self._channels, self._consumer_id, order, self.name) as call:
            tensor = landing_memory(order.spec)
            target = byte_array(tensor).data
            num_received = 0
            while num_received < len(target):
                chunk = await call.read_chunk()
                try:
                    _check_chunk(chunk, num_received, len(target))
                except IntegrityError as error:
                    raise LaneFailure(error) from None
                target[num_received : num_received + len(chunk.data)] = chunk.data
                num_received += len(chunk.data)
            return Arrival(tensor, call.outcome, call.wait_s)

    async def close(self) -> None:
        """Nothing is held between calls."""


def _check_chunk(chunk: Chunk, offset: int, num_bytes: int) -> None:
    """Raises IntegrityError unless the chunk is the next one, not empty, within `num_bytes` and whole."""
    length = len(chunk.data)
    if chunk.offset != offset or not 0 < length <= num_bytes - offset:
        raise IntegrityError(
            f"chunk of {length} bytes at {chunk.offset}, expected the next of {num_bytes} bytes at {offset}",
            field="chunk.offset",
        )
    actual = crc32_of_bytes(chunk.data)
    if actual != chunk.crc32:
        raise IntegrityError(f"chunk at {offset}: crc32 {actual:08x}, expected {chunk.crc32:08x}", field="chunk.crc32")
