"""ProducerLinks: the sending ends of a producer's links in one lane, and what is on offer there."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from torch import Tensor

from triptych.errors import FailedPrecondition, InvalidRequest, Overloaded
from triptych.transport.lanes import LANE_FIELD
from triptych.transport.links.backend import PRODUCER_RANK, LinkKey
from triptych.transport.links.link import Link
from triptych.transport.links.meeting import Meeting, address_toward, check_address
from triptych.transport.links.settings import LinkSettings
from triptych.transport.links.table import LINKS_FIELD
from triptych.transport.ticket import new_id
from triptych.v1.tensor_pb2 import (
    LinkConnected,
    LinkMeeting,
    LinkOpen,
    LinkPosted,
    LinkReady,
    OpenLinkRequest,
    OpenLinkResponse,
)

logger = logging.getLogger(__name__)

Read = Callable[[], Awaitable[Any]]
WriteResponse = Callable[[OpenLinkResponse], Awaitable[None]]
_MAX_REMEMBERED = 4_096


@dataclass(eq=False)
class Offer:
    """Bytes that a consumer may ask for once. `sending` is there from the moment that it did."""

    data: Tensor
    transfer_id: str = field(default_factory=new_id)
    sending: asyncio.Future[None] | None = None
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class ProducerLinks:
    """Belongs to one event loop."""

    def __init__(self, producer_id: str, settings: LinkSettings) -> None:
        self._producer_id = producer_id
        self._settings = settings
        self._launcher = ThreadPoolExecutor(1, thread_name_prefix=f"launch-{settings.lane}")
        self._offers: dict[str, Offer] = {}
        # The links that are open or opening.
        self._serving: set[asyncio.Task[None]] = set()
        # Consumer -> last epoch seen.
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self._is_closed = False

    @property
    def num_links(self) -> int:
        return len(self._serving)

    @property
    def num_offers(self) -> int:
        return len(self._offers)

    def offer(self, data: Tensor) -> Offer:
        """Put bytes (flat, on the link's device) on offer; to be withdrawn in a `finally`."""
        offer = Offer(data)
        self._offers[offer.transfer_id] = offer
        return offer

    async def wait_sent(self, offer: Offer) -> None:
        """Until the bytes have been sent. Raises Unavailable when their link broke."""
        await offer.taken.wait()
        assert offer.sending is not None
        await asyncio.shield(offer.sending)

    async def withdraw(self, offer: Offer) -> None:
        """Nobody can ask for it any more. Returns when nothing reads its memory: a send under way has ended or failed,
        which takes the link's timeout at most; a caller that is cancelled waits for that too."""
        self._offers.pop(offer.transfer_id, None)
        while offer.sending is not None and not offer.sending.done():
            try:
                await asyncio.wait([offer.sending])
            except asyncio.CancelledError:
                continue

    async def serve(self, opening: LinkOpen, read: Read, write: WriteResponse) -> None:
        """Opens a link to the caller and sends what it asks for, until either end ends it."""
        key = self._check_opening(opening)
        # A task of its own, for `close` to cancel: the call itself must go on to tell the consumer.
        life = asyncio.create_task(self._live(key, opening.consumer_host, read, write), name=f"link {key}")
        self._serving.add(life)
        life.add_done_callback(self._serving.discard)
        await life

    def close(self) -> None:
        """Ends all links; later ones are refused. Idempotent."""
        self._is_closed = True
        for task in list(self._serving):
            task.cancel()
        self._launcher.shutdown(wait=False)

    async def _live(self, key: LinkKey, consumer_host: str, read: Read, write: WriteResponse) -> None:
        own_host = await asyncio.to_thread(address_toward, consumer_host)
        link = Link(key, self._settings.make_backend(own_host), self._launcher, self._settings.timeout_s)
        try:
            await self._open(link, own_host, write)
            await self._answer(link, read, write)
        finally:
            link.abort()

    async def _open(self, link: Link, own_host: str, write: WriteResponse) -> None:
        meeting = await asyncio.to_thread(Meeting, own_host, self._settings.timeout_s)
        await write(OpenLinkResponse(meeting=LinkMeeting(store_port=meeting.port)))
        await link.open(meeting.store, PRODUCER_RANK)
        await write(OpenLinkResponse(connected=LinkConnected()))

    async def _answer(self, link: Link, read: Read, write: WriteResponse) -> None:
        """Sends in the order of asking. Raises Unavailable as soon as one send has failed."""
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        while True:
            reading = asyncio.ensure_future(read())
            try:
                await asyncio.wait([reading, broken], return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not reading.done():
                    reading.cancel()
            if broken.done():
                broken.result()
            request: Any = reading.result()
            if request is grpc.aio.EOF:
                return
            ready = _checked(request)
            is_sending = self._send(link, ready, broken)
            await write(OpenLinkResponse(posted=LinkPosted(sequence=ready.sequence, is_sending=is_sending)))

    def _send(self, link: Link, ready: LinkReady, broken: asyncio.Future[None]) -> bool:
        offer = self._offers.get(ready.transfer_id)
        if offer is None or offer.data.nbytes != ready.num_bytes:
            return False
        del self._offers[ready.transfer_id]
        sending = offer.sending = link.send(offer.data)
        offer.taken.set()

        def end(done: asyncio.Future[None]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None and not broken.done():
                broken.set_exception(error)

        sending.add_done_callback(end)
        return True

    def _check_opening(self, opening: LinkOpen) -> LinkKey:
        key = LinkKey(self._settings.lane, self._producer_id, opening.consumer_id, opening.epoch)
        check_address(opening.consumer_host)
        if self._is_closed:
            raise FailedPrecondition(f"link {key}: the actor is shutting down", field=LANE_FIELD)
        last_epoch = self._epochs.get(opening.consumer_id, 0)
        if opening.epoch <= last_epoch:
            raise InvalidRequest(
                f"link {key}: the last epoch was {last_epoch}, expected a later one",
                field="open.epoch",
            )
        if len(self._serving) >= self._settings.max_links:
            raise Overloaded(
                f"link {key}: this producer has {len(self._serving)} links already ({LINKS_FIELD})", field=LINKS_FIELD
            )
        self._epochs[opening.consumer_id] = opening.epoch
        if len(self._epochs) > _MAX_REMEMBERED:
            self._epochs.popitem(last=False)
        return key


def _checked(request: OpenLinkRequest) -> LinkReady:
    if not request.HasField("ready"):
        raise InvalidRequest("expected `ready` on an open link", field="ready")
    return request.ready
