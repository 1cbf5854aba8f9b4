"""LeaderLink: the leader's side of a group: one stream to every follower, and the collectives."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import torch

from llm_service.parallel.collectives import TorchCollectives
from llm_service.parallel.frames import Frame, FrameKind, receive_frame
from llm_service.parallel.hangup import HangupWatch
from llm_service.parallel.rendezvous import Rendezvous
from triptych.errors import IntegrityError, Unavailable
from triptych.v1 import admin_pb2

logger = logging.getLogger(__name__)


class LeaderLink:
    """Tells all followers what is to be done next, then does its own part: so all ranks do the same in one order.

    When one rank is gone, the group is: whatever is under way is ended, `lost` is set, and everything raises
    Unavailable from then on.
    """

    def __init__(self, streams: Mapping[int, socket.socket], collectives: TorchCollectives) -> None:
        self.collectives = collectives
        self.lost: Future[str] = Future()
        self._streams = dict(streams)
        self._lock = threading.Lock()
        self._is_closed = False
        self._watch = HangupWatch(streams, lambda rank: self.lose(f"rank {rank} of the group is gone"))

    @classmethod
    def gather(cls, rendezvous: Rendezvous, size: int, device: torch.device, timeout_s: float) -> LeaderLink:
        """Blocks until all followers are there. Raises Unavailable when they don't come in time."""
        streams = rendezvous.gather(size, timeout_s)
        address = rendezvous.address
        try:
            collectives = TorchCollectives.connect(
                address.host, address.store_port, 0, size, device, timeout_s,
                own_host=address.host, listener=rendezvous.store_listener,
            )  # fmt: skip
        except BaseException:
            for stream in streams.values():
                stream.close()
            raise
        return cls(streams, collectives)

    def wait_loaded(self) -> list[admin_pb2.RankInfo]:
        """Blocks until every follower has its part of the model; what each says about itself, by rank."""
        infos = []
        for rank, stream in sorted(self._streams.items()):
            try:
                frame = receive_frame(stream)
            except (EOFError, OSError, IntegrityError) as error:
                self.lose(f"rank {rank} of the group ended while it loaded")
                raise self._gone() from error
            infos.append(admin_pb2.RankInfo.FromString(frame.data))
        return infos

    def tell(self, kind: FrameKind, integers: Sequence[int] = ()) -> None:
        self.send(Frame.of(kind, integers))

    def send(self, frame: Frame) -> None:
        """To every follower. Raises Unavailable when the group is lost."""
        self.check()
        packed = frame.pack()
        try:
            for stream in self._streams.values():
                stream.sendall(packed)
        except OSError as error:
            self.lose(f"a follower does not take its frames: {error}")
            raise self._gone() from error

    def check(self) -> None:
        """Raises Unavailable when the group is lost."""
        if self.lost.done():
            raise self._gone()

    def lose(self, reason: str) -> None:
        """From any thread. Ends what is under way, also what the device waits for."""
        with self._lock:
            if self._is_closed or self.lost.done():
                return
            self.lost.set_result(reason)
        logger.error("%s; the actor can't go on", reason)
        self._end_streams()
        self.collectives.abort()

    def close(self) -> None:
        """Ends the followers in order. Idempotent; the engine must have ended before."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if was_closed:
            return
        self._watch.close()
        if not self.lost.done():
            self.lost.set_result("the actor was stopped")
            for stream in self._streams.values():
                try:
                    stream.sendall(Frame.of(FrameKind.STOP).pack())
                except OSError as error:
                    logger.debug("a follower can't be told of the end: %s", error)
        self._end_streams()
        for stream in self._streams.values():
            stream.close()
        self.collectives.close()

    def _end_streams(self) -> None:
        for stream in self._streams.values():
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # It ended before.

    def _gone(self) -> Unavailable:
        return Unavailable(f"{self.lost.result()}: the actor can't compute any more")
