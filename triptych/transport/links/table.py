"""LinkTable: the links of a consumer in one lane, one for each producer incarnation it fetches from."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from triptych.errors import Overloaded, TriptychError
from triptych.rpc.channels import ChannelPool
from triptych.transport.lanes import LaneFailure, LaneNotReady
from triptych.transport.links.backend import LinkKey
from triptych.transport.links.consumer_link import ConsumerLink
from triptych.transport.links.settings import LinkSettings
from triptych.transport.ticket import Ticket

logger = logging.getLogger(__name__)

LINKS_FIELD = "transport.max_links"
_MAX_REMEMBERED = 4_096


class LinkTable:
    """Opens links at first use, at most `max_links`, and closes those that nobody used for `idle_s`."""

    def __init__(self, consumer_id: str, channels: ChannelPool, settings: LinkSettings) -> None:
        self._consumer_id = consumer_id
        self._channels = channels
        self._settings = settings
        self._launcher = ThreadPoolExecutor(1, thread_name_prefix=f"launch-{settings.lane}")
        self._links: dict[str, ConsumerLink] = {}
        self._opening: dict[str, asyncio.Task[ConsumerLink]] = {}
        # Producer -> why its link could not be opened while nobody waited for it.
        self._failures: dict[str, TriptychError] = {}
        # Producer -> last epoch used.
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self._idle_timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def use(self, ticket: Ticket, is_last_lane: bool) -> AsyncIterator[ConsumerLink]:
        """The open link to the ticket's producer, not closed as idle meanwhile.

        Where there is none, one is opened: the caller waits for it if it has no other lane, else it gets LaneNotReady
        and the next fetch finds the link. Raises LaneFailure when it can't be opened.
        """
        link = self._links.get(ticket.producer_id)
        if link is None or not link.is_open:
            opening = self._start_opening(ticket)
            if not is_last_lane:
                raise LaneNotReady
            try:
                link = await asyncio.shield(opening)
            except TriptychError as error:
                self._failures.pop(ticket.producer_id, None)
                raise LaneFailure(error) from None
        with link.held():
            yield link

    async def close(self) -> None:
        """Closes all links."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        opening = list(self._opening.values())
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._launcher.shutdown(wait=False)

    def _start_opening(self, ticket: Ticket) -> asyncio.Task[ConsumerLink]:
        producer_id = ticket.producer_id
        error = self._failures.pop(producer_id, None)
        if error is not None:
            raise LaneFailure(error)
        if producer_id not in self._opening:
            self._make_room()
            epoch = self._epochs.get(producer_id, 0) + 1
            self._epochs[producer_id] = epoch
            if len(self._epochs) > _MAX_REMEMBERED:
                self._epochs.popitem(last=False)
            key = LinkKey(self._settings.lane, producer_id, self._consumer_id, epoch)
            task = asyncio.create_task(self._open(ticket.producer_endpoint, key), name=f"open link {key}")
            task.add_done_callback(lambda done: self._end_opening(producer_id, done))
            self._opening[producer_id] = task
        return self._opening[producer_id]

    async def _open(self, endpoint: str, key: LinkKey) -> ConsumerLink:
        start_s = time.monotonic()
        link = await ConsumerLink.open(self._channels, endpoint, key, self._settings, self._launcher)
        logger.info("link %s is open after %.0f ms", key, (time.monotonic() - start_s) * 1000)
        with link.held():  # Counts as used now.
            self._links[key.producer_id] = link
        self._watch_idle()
        return link

    def _end_opening(self, producer_id: str, task: asyncio.Task[ConsumerLink]) -> None:
        del self._opening[producer_id]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, TriptychError):
            self._failures[producer_id] = error
            while len(self._failures) > _MAX_REMEMBERED:
                self._failures.pop(next(iter(self._failures)))

    def _make_room(self) -> None:
        """Raises LaneFailure when every link is in use."""
        self._links = {producer_id: link for producer_id, link in self._links.items() if link.is_open}
        if len(self._links) + len(self._opening) < self._settings.max_links:
            return
        idle = [item for item in self._links.items() if item[1].num_users == 0]
        if not idle:
            raise LaneFailure(
                Overloaded(f"all {self._settings.max_links} links are in use ({LINKS_FIELD})", field=LINKS_FIELD)
            )
        producer_id, link = min(idle, key=lambda item: item[1].last_used_s)
        del self._links[producer_id]
        link.close()

    def _watch_idle(self) -> None:
        """Looks again when the next link may have become idle, as long as there are links."""
        loop = asyncio.get_running_loop()
        now, idle_s = loop.time(), self._settings.idle_s
        for producer_id, link in list(self._links.items()):
            if not link.is_open or (link.num_users == 0 and link.last_used_s + idle_s <= now):
                del self._links[producer_id]
                link.close()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._idle_timer = loop.call_later(max(idle_s / 4, 0.01), self._watch_idle) if self._links else None
