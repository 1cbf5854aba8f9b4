"""Rendezvous: where the ranks of a group meet, made by the leader before it loads anything."""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from llm_service.parallel.frames import Frame, FrameKind, receive_frame
from triptych.errors import ConfigurationError, IntegrityError, Unavailable

# A stranger gets that long to say who it is, and that many bytes for it.
_HELLO_TIMEOUT_S = 5.0
_MAX_HELLO_BYTES = 1_024
_TOKEN_BYTES = 32


@dataclass(frozen=True)
class RendezvousAddress:
    """What a follower is told. port: for the leader's word; store_port: for the collectives; token: who belongs."""

    host: str
    port: int
    store_port: int
    token: str

    def to_text(self) -> str:
        return f"{self.port} {self.store_port} {self.token} {self.host}"

    @classmethod
    def from_text(cls, text: str) -> RendezvousAddress:
        """Raises ConfigurationError for anything but what `to_text` gives."""
        try:
            port, store_port, token, host = text.split()
            return cls(host, int(port), int(store_port), token)
        except ValueError:
            raise ConfigurationError(f"{len(text)} characters are no rendezvous of a group of ranks") from None


class Rendezvous:
    """Listens on `host` for the followers of one group. `close` unless `gather` succeeded."""

    def __init__(self, host: str) -> None:
        self._listener = socket.create_server((host, 0))
        self.store_listener = socket.create_server((host, 0))
        self.address = RendezvousAddress(
            host,
            self._listener.getsockname()[1],
            self.store_listener.getsockname()[1],
            secrets.token_hex(_TOKEN_BYTES),
        )

    def gather(self, size: int, timeout_s: float) -> dict[int, socket.socket]:
        """The stream to each follower, by rank, once all `size` - 1 have come. Raises Unavailable when they don't."""
        streams: dict[int, socket.socket] = {}
        deadline_s = time.monotonic() + timeout_s
        try:
            while len(streams) < size - 1:
                self._listener.settimeout(max(deadline_s - time.monotonic(), 0.001))
                stream, _ = self._listener.accept()
                rank = self._rank_of(stream, size)
                if rank is None or rank in streams:
                    stream.close()
                    continue
                _prepare(stream)
                streams[rank] = stream
        except OSError as error:
            for stream in streams.values():
                stream.close()
            raise Unavailable(
                f"{len(streams)} of {size - 1} followers of the group came within {timeout_s:g} s"
            ) from error
        finally:
            self._listener.close()
        return streams

    def close(self) -> None:
        """Idempotent; whoever waits in `gather` gets Unavailable."""
        for listener in (self._listener, self.store_listener):
            with suppress(OSError):
                # Only this wakes an `accept` on another thread.
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _rank_of(self, stream: socket.socket, size: int) -> int | None:
        """The rank that says hello with the group's token; None for whoever else connects."""
        stream.settimeout(_HELLO_TIMEOUT_S)
        try:
            frame = receive_frame(stream, _MAX_HELLO_BYTES)
        except (OSError, EOFError, IntegrityError):
            return None
        is_member = hmac.compare_digest(frame.data, self.address.token.encode())
        if frame.kind is not FrameKind.HELLO or not is_member or len(frame.integers) != 2:
            return None
        rank, size_there = frame.integers.tolist()
        return rank if size_there == size and 0 < rank < size else None


def join(address: RendezvousAddress, rank: int, size: int, timeout_s: float) -> socket.socket:
    """The follower's stream to its leader. Raises Unavailable when that is not there."""
    try:
        stream = socket.create_connection((address.host, address.port), timeout_s)
        stream.sendall(Frame.of(FrameKind.HELLO, (rank, size), address.token.encode()).pack())
    except OSError as error:
        raise Unavailable(f"rank {rank} can't reach its leader at {address.host}:{address.port}: {error}") from error
    _prepare(stream)
    return stream


def _prepare(stream: socket.socket) -> None:
    """For small frames that can't wait, and for ever."""
    stream.settimeout(None)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
