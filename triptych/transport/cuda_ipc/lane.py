"""Both ends of the lane "cuda_ipc".

As with shared memory the Fetch stream stays open until the consumer has its copy; its end frees the piece of the slab.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import torch

from triptych.errors import DeadlineExceeded, FailedPrecondition, IntegrityError, Overloaded, TriptychError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.transport.copying import byte_tensor, run_copy
from triptych.transport.cuda_ipc.driver import HANDLE_BYTES, CudaDriver
from triptych.transport.cuda_ipc.mappings import SlabMappings
from triptych.transport.cuda_ipc.slab import STAMP, STAMP_BYTES, CudaSlab
from triptych.transport.device_copy import DeviceCopies, crc32_of
from triptych.transport.fetch_call import open_fetch
from triptych.transport.lanes import LANE_FIELD, Arrival, FetchOrder, LaneFailure, Write
from triptych.transport.ticket import Ticket
from triptych.v1.tensor_pb2 import CudaMemoryHandle, FetchResponse, TensorHeader

LANE = "cuda_ipc"


class CudaIpcProducerLane:
    """Producer's end. The slab is made by the first tensor that is sent, for most actors have no such consumer."""

    name = LANE

    def __init__(
        self, make_slab: Callable[[], CudaSlab], device: torch.device, device_id: str, *, has_checksums: bool
    ) -> None:
        self._make_slab = make_slab
        self._device = device
        self._device_id = device_id
        self._has_checksums = has_checksums
        self._slab: CudaSlab | None = None
        self._turn = asyncio.Lock()
        self._copies = DeviceCopies()

    async def send(self, rows: torch.Tensor, header: TensorHeader, write: Write, deadline: Deadline) -> None:
        if rows.nbytes == 0:
            await write(FetchResponse(header=header))
            return
        slab = await self._opened_slab()
        piece = slab.allocate(rows.nbytes)
        try:
            data = await run_copy(rows.nbytes, self._bytes_on_device, rows)
            await run_copy(rows.nbytes, slab.write, piece, data)
            crc32 = await run_copy(rows.nbytes, crc32_of, data, self._copies) if self._has_checksums else None
            header.cuda_memory.CopyFrom(
                CudaMemoryHandle(
                    handle=slab.handle,
                    offset=piece.offset,
                    slab_bytes=slab.extents.num_bytes,
                    device_id=self._device_id,
                    crc32=crc32,
                    stamp=piece.stamp,
                )
            )
            await write(FetchResponse(header=header))
            # The consumer reads now; it ends the call when it is done.
            await asyncio.sleep(deadline.remaining_s())
            raise DeadlineExceeded("the consumer did not take the tensor out of GPU memory in time")
        finally:
            slab.free(piece)

    def close(self) -> None:
        if self._slab is not None:
            self._slab.close()

    async def _opened_slab(self) -> CudaSlab:
        async with self._turn:
            if self._slab is None:
                try:
                    self._slab = await asyncio.to_thread(self._make_slab)
                except (Unavailable, Overloaded) as error:
                    raise FailedPrecondition(f"lane {LANE} is off here: {error.message}", field=LANE_FIELD) from None
            return self._slab

    def _bytes_on_device(self, rows: torch.Tensor) -> torch.Tensor:
        return byte_tensor(self._copies.contiguous_on(rows, self._device))


class CudaIpcConsumerLane:
    """Consumer's end. `visible`: the GPUs that this process sees, by id."""

    name = LANE

    def __init__(
        self,
        channels: ChannelPool,
        consumer_id: str,
        host_id: str,
        driver: CudaDriver,
        device: torch.device,
        visible: Mapping[str, torch.device],
        idle_s: float,
    ) -> None:
        self.mappings = SlabMappings(driver, idle_s)
        self._channels = channels
        self._consumer_id = consumer_id
        self._host_id = host_id
        self._driver = driver
        self._device = device
        self._visible = visible
        self._copies = DeviceCopies()

    def can_reach(self, ticket: Ticket) -> bool:
        return ticket.producer_host_id == self._host_id and ticket.device_id in self._visible

    async def fetch(self, order: FetchOrder) -> Arrival:
        producer_id = order.ticket.producer_id
        try:
            async with open_fetch(self._channels, self._consumer_id, order, self.name) as call:
                memory = call.header.cuda_memory
                target = self._empty(order)
                if target.nbytes > 0:
                    try:
                        await self._take(producer_id, memory, target)
                    except TriptychError as error:
                        raise LaneFailure(error) from None
                return Arrival(target, call.outcome, call.wait_s)
        except Unavailable:
            self.mappings.drop(producer_id)
            raise

    async def close(self) -> None:
        self.mappings.close()

    async def _take(self, producer_id: str, memory: CudaMemoryHandle, target: torch.Tensor) -> None:
        check_memory(memory, target.nbytes)
        async with self.mappings.mapped(producer_id, memory.handle) as address:
            stamp = await run_copy(target.nbytes, self._copy_out, address + memory.offset, target)
        if stamp != memory.stamp:
            raise Unavailable(
                f"GPU memory of {producer_id} at {memory.offset}: the producer has taken the piece back meanwhile"
            )
        if not memory.HasField("crc32"):
            return
        actual = await run_copy(target.nbytes, crc32_of, target, self._copies)
        if actual != memory.crc32:
            raise IntegrityError(
                f"GPU memory of {producer_id}: crc32 {actual:08x}, expected {memory.crc32:08x}",
                field="cuda_memory.crc32",
            )

    def _copy_out(self, source: int, target: torch.Tensor) -> int:
        """The stamp as it is once the bytes were copied: whoever lays others over them changes it first."""
        self._driver.copy(target.data_ptr(), source, target.nbytes)
        stamp: int = STAMP.unpack(self._driver.read(source - STAMP_BYTES, STAMP.size))[0]
        return stamp

    def _empty(self, order: FetchOrder) -> torch.Tensor:
        try:
            return self._copies.empty(order.spec.shape, order.spec.dtype, self._device)
        except torch.OutOfMemoryError as error:
            raise LaneFailure(Overloaded(f"no memory to receive {order.spec}: {error}")) from None


def check_memory(memory: CudaMemoryHandle, num_bytes: int) -> None:
    """Raises IntegrityError unless `num_bytes` at the offset, and the stamp before them, lie inside the slab."""
    if len(memory.handle) != HANDLE_BYTES:
        raise IntegrityError(
            f"cuda_memory.handle has {len(memory.handle)} bytes, expected {HANDLE_BYTES}", field="cuda_memory.handle"
        )
    if memory.offset < STAMP_BYTES:
        raise IntegrityError(
            f"cuda_memory: bytes at {memory.offset}, expected {STAMP_BYTES} or more", field="cuda_memory.offset"
        )
    if memory.offset + num_bytes > memory.slab_bytes:
        raise IntegrityError(
            f"cuda_memory: {num_bytes} bytes at {memory.offset} reach past the slab of {memory.slab_bytes}",
            field="cuda_memory.offset",
        )
