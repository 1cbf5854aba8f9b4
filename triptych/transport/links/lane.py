"""The lanes over links, "nccl" and "gloo": Fetch waits for the tensor, the link moves its bytes."""

from __future__ import annotations

import torch

from triptych.errors import IntegrityError, Overloaded, TriptychError
from triptych.rpc.channels import ChannelPool
from triptych.rpc.deadline import Deadline
from triptych.transport.copying import byte_tensor, run_copy
from triptych.transport.device_copy import DeviceCopies, crc32_of
from triptych.transport.fetch_call import open_fetch
from triptych.transport.lanes import Arrival, FetchOrder, LaneFailure, Write
from triptych.transport.links.producer_links import ProducerLinks, Read, WriteResponse
from triptych.transport.links.settings import LinkSettings
from triptych.transport.links.table import LinkTable
from triptych.transport.ticket import Ticket
from triptych.v1.tensor_pb2 import FetchResponse, LinkOpen, LinkTransfer, TensorHeader


class LinkProducerLane:
    """Producer's end."""

    def __init__(self, producer_id: str, settings: LinkSettings) -> None:
        self.name = settings.lane
        self.links = ProducerLinks(producer_id, settings)
        self._settings = settings
        self._copies = DeviceCopies()

    async def send(self, rows: torch.Tensor, header: TensorHeader, write: Write, deadline: Deadline) -> None:
        if rows.nbytes == 0:
            await write(FetchResponse(header=header))
            return
        data = await run_copy(rows.nbytes, self._bytes_on_device, rows)
        crc32 = await run_copy(rows.nbytes, crc32_of, data, self._copies) if self._settings.has_checksums else None
        offer = self.links.offer(data)
        try:
            header.link.CopyFrom(LinkTransfer(transfer_id=offer.transfer_id, crc32=crc32))
            await write(FetchResponse(header=header))
            await self.links.wait_sent(offer)
        finally:
            await self.links.withdraw(offer)

    async def serve(self, opening: LinkOpen, read: Read, write: WriteResponse) -> None:
        """The life of one link, as its stream OpenLink."""
        await self.links.serve(opening, read, write)

    def close(self) -> None:
        self.links.close()

    def _bytes_on_device(self, rows: torch.Tensor) -> torch.Tensor:
        return byte_tensor(self._copies.contiguous_on(rows, self._settings.device))


class LinkConsumerLane:
    """Consumer's end. `can_link` tells whether there can be a link to a ticket's producer at all."""

    def __init__(self, consumer_id: str, channels: ChannelPool, settings: LinkSettings) -> None:
        self.name = settings.lane
        self.links = LinkTable(consumer_id, channels, settings)
        self._settings = settings
        self._channels = channels
        self._consumer_id = consumer_id
        self._copies = DeviceCopies()

    def can_reach(self, ticket: Ticket) -> bool:
        return True

    async def fetch(self, order: FetchOrder) -> Arrival:
        async with (
            self.links.use(order.ticket, order.is_last_lane) as link,
            open_fetch(self._channels, self._consumer_id, order, self.name) as call,
        ):
            target = self._empty(order)
            if target.nbytes > 0:
                transfer = call.header.link
                try:
                    await link.receive(transfer.transfer_id, target)
                except TriptychError as error:
                    raise LaneFailure(error) from None
                if transfer.HasField("crc32"):
                    await self._check(target, transfer.crc32)
            return Arrival(target, call.outcome, call.wait_s)

    async def close(self) -> None:
        await self.links.close()

    def _empty(self, order: FetchOrder) -> torch.Tensor:
        try:
            return self._copies.empty(order.spec.shape, order.spec.dtype, self._settings.device)
        except torch.OutOfMemoryError as error:
            raise LaneFailure(Overloaded(f"no memory to receive {order.spec}: {error}")) from None

    async def _check(self, target: torch.Tensor, crc32: int) -> None:
        actual = await run_copy(target.nbytes, crc32_of, target, self._copies)
        if actual != crc32:
            raise LaneFailure(
                IntegrityError(
                    f"lane {self.name}: crc32 {actual:08x} of what came, expected {crc32:08x}", field="link.crc32"
                )
            )


class NcclConsumerLane(LinkConsumerLane):
    """Between two GPUs: two ends of one communicator on one GPU may hang."""

    def __init__(self, consumer_id: str, channels: ChannelPool, settings: LinkSettings, device_id: str) -> None:
        super().__init__(consumer_id, channels, settings)
        self._device_id = device_id

    def can_reach(self, ticket: Ticket) -> bool:
        return bool(ticket.device_id and self._device_id) and ticket.device_id != self._device_id
