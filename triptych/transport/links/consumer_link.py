"""ConsumerLink: the receiving end of a link, with the stream that controls it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from torch import Tensor

from triptych.errors import TriptychError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.rpc.status import rpc_errors
from triptych.transport.copying import byte_tensor
from triptych.transport.links.backend import CONSUMER_RANK, LinkKey
from triptych.transport.links.link import Link
from triptych.transport.links.meeting import address_toward, join_meeting, split_endpoint
from triptych.transport.links.settings import LinkSettings
from triptych.v1.tensor_pb2 import LinkOpen, LinkPosted, LinkReady, OpenLinkRequest, OpenLinkResponse
from triptych.v1.tensor_pb2_grpc import TensorServiceStub


@dataclass(frozen=True, eq=False)
class _Transfer:
    """Asked for. The link, not who asked, keeps it until it has ended: a posted receive can't be taken back."""

    target: Tensor
    result: asyncio.Future[None]
    timer: asyncio.TimerHandle


class ConsumerLink:
    """Made by `open`. After the first error, and after `close`, `is_open` is False for good."""

    def __init__(self, link: Link, call: Any, settings: LinkSettings) -> None:
        self.key = link.key
        self.num_users = 0
        self.last_used_s = 0.0
        self._link = link
        self._call = call
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.num_slots)
        self._write_turn = asyncio.Lock()
        self._sequence = 0
        self._transfers: dict[int, _Transfer] = {}
        self._error: TriptychError | None = None
        self._reader = asyncio.create_task(self._read_answers(), name=f"link {link.key}")

    @classmethod
    async def open(
        cls, channels: ChannelPool, endpoint: str, key: LinkKey, settings: LinkSettings, launcher: ThreadPoolExecutor
    ) -> ConsumerLink:
        """Connects to the producer at `endpoint`. Raises what the producer refuses with, else Unavailable."""
        host, timeout_s = split_endpoint(endpoint), settings.timeout_s
        own_host = await asyncio.to_thread(address_toward, host)
        link = Link(key, settings.make_backend(own_host), launcher, timeout_s)
        call: Any = None
        try:
            with rpc_errors(endpoint):
                stub: Any = TensorServiceStub(channels.get(endpoint))
                # Without a deadline: the call lives as long as the link.
                call = stub.OpenLink()
                async with asyncio.timeout(timeout_s):
                    await call.write(OpenLinkRequest(open=_opening(key, own_host)))
                    port = (await _read(call, "meeting")).meeting.store_port
                    store = await asyncio.to_thread(join_meeting, host, port, timeout_s)
                    await link.open(store, CONSUMER_RANK)
                    await _read(call, "connected")
        except BaseException as error:
            if call is not None:
                call.cancel()
            link.abort()
            if isinstance(error, TimeoutError | RuntimeError):
                raise Unavailable(
                    f"link {key} did not open within {timeout_s:g} s (transport.link_timeout_s): {error}"
                ) from error
            raise
        return cls(link, call, settings)

    @property
    def is_open(self) -> bool:
        return self._error is None

    @contextmanager
    def held(self) -> Iterator[ConsumerLink]:
        """Not idle while the block runs."""
        self.num_users += 1
        try:
            yield self
        finally:
            self.num_users -= 1
            self.last_used_s = asyncio.get_running_loop().time()

    async def receive(self, transfer_id: str, target: Tensor) -> None:
        """Fills `target` (contiguous, on the link's device) with the rows on offer under `transfer_id`.

        Raises Unavailable. Once the producer was told, a cancelled caller leaves the transfer to the link.
        """
        await self._slots.acquire()
        if self._error is not None:
            self._slots.release()
            raise self._error
        loop = asyncio.get_running_loop()
        self._sequence += 1
        timer = loop.call_later(self._settings.timeout_s, self._expire)
        transfer = _Transfer(byte_tensor(target), loop.create_future(), timer)
        self._transfers[self._sequence] = transfer
        ready = LinkReady(transfer_id=transfer_id, sequence=self._sequence, num_bytes=target.nbytes)
        # Behind the writes before it: each task takes its turn in the order of creation.
        write = asyncio.create_task(self._write(ready))
        transfer.result.add_done_callback(lambda result: self._end_transfer(ready.sequence, write, result))
        await asyncio.shield(transfer.result)

    def close(self) -> None:
        """Ends the link, and the transfers under way with Unavailable. Idempotent."""
        self._end(Unavailable(f"link {self.key} was closed"))

    async def _write(self, ready: LinkReady) -> None:
        async with self._write_turn:
            try:
                with rpc_errors(str(self.key)):
                    await self._call.write(OpenLinkRequest(ready=ready))
            except TriptychError as error:
                self._end(error)
            except asyncio.InvalidStateError:
                self._end(Unavailable(f"the stream of link {self.key} has ended"))

    async def _read_answers(self) -> None:
        try:
            with rpc_errors(str(self.key)):
                while True:
                    self._take_answer((await _read(self._call, "posted")).posted)
        except TriptychError as error:
            self._end(error)

    def _take_answer(self, posted: LinkPosted) -> None:
        transfer = self._transfers.get(posted.sequence)
        if transfer is None or transfer.result.done():
            raise Unavailable(f"link {self.key}: an answer to {posted.sequence}, which is not under way")
        if not posted.is_sending:
            error = Unavailable(f"link {self.key}: the producer has withdrawn the tensor")
            transfer.result.set_exception(error)
            return
        self._link.recv(transfer.target).add_done_callback(lambda done: self._arrived(transfer, done))

    def _arrived(self, transfer: _Transfer, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, TriptychError):
            self._end(error)
        elif not transfer.result.done():
            transfer.result.set_result(None)

    def _end_transfer(self, sequence: int, write: asyncio.Task[None], result: asyncio.Future[None]) -> None:
        transfer = self._transfers.pop(sequence)
        transfer.timer.cancel()
        self._slots.release()
        if not result.cancelled():
            result.exception()  # Taken, in case nobody waits any more.

    def _expire(self) -> None:
        self._end(
            Unavailable(
                f"link {self.key}: a transfer was not over within {self._settings.timeout_s:g} s "
                "(transport.link_timeout_s)"
            )
        )

    def _end(self, error: TriptychError) -> None:
        if self._error is not None:
            return
        self._error = error
        for transfer in list(self._transfers.values()):
            if not transfer.result.done():
                transfer.result.set_exception(error)
        self._call.cancel()
        self._link.abort()
        if asyncio.current_task() is not self._reader:
            self._reader.cancel()


def _opening(key: LinkKey, own_host: str) -> LinkOpen:
    return LinkOpen(
        lane=key.lane,
        producer_id=key.producer_id,
        consumer_id=key.consumer_id,
        epoch=key.epoch,
        consumer_host=own_host,
    )


async def _read(call: Any, part: str) -> OpenLinkResponse:
    response: Any = await call.read()
    if response is grpc.aio.EOF:
        raise Unavailable("the producer ended the link")
    if not response.HasField(part):
        raise Unavailable(f"the producer said {response.WhichOneof('part')!r} on a link, expected {part!r}")
    answer: OpenLinkResponse = response
    return answer
