"""Frames: what the leader of a group and its followers tell each other, over one stream socket each.

A frame is a kind, integers and bytes, packed without any object in it: "<4sIQQ" with the mark, the kind, the number of
integers and the number of bytes, then the integers as little-endian int64, then the bytes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from triptych.errors import IntegrityError

_MARK = b"TPGF"
_HEADER = struct.Struct("<4sIQQ")
# Far above the longest prompts of a step that fit a context; nothing larger is read or allocated.
MAX_FRAME_BYTES = 1 << 30


class FrameKind(IntEnum):
    # From a follower: [rank, size], the group's token.
    HELLO = 1
    # From a follower: nothing, a v1.RankInfo.
    LOADED = 2
    # From the leader from here on. PREPARE: nothing.
    PREPARE = 3
    # What `StepWriter` writes.
    STEP = 4
    # First layer, the one behind the last, page numbers: the pages of these layers are gathered on the leader.
    EXPORT = 5
    # Page numbers: their contents are scattered by the leader.
    IMPORT = 6
    # Nothing: the group ends in order.
    STOP = 7


@dataclass(frozen=True)
class Frame:
    kind: FrameKind
    integers: NDArray[np.int64]
    data: bytes = b""

    @classmethod
    def of(cls, kind: FrameKind, integers: Sequence[int] = (), data: bytes = b"") -> Frame:
        return cls(kind, np.array(integers, dtype=np.int64), data)

    def pack(self) -> bytes:
        """Raises IntegrityError for a frame that the other side would refuse."""
        integers = self.integers.astype("<i8", copy=False).tobytes()
        _check_size(len(integers) + len(self.data))
        return _HEADER.pack(_MARK, self.kind, len(self.integers), len(self.data)) + integers + self.data


def receive_frame(stream: socket.socket, max_bytes: int = MAX_FRAME_BYTES) -> Frame:
    """Waits for the next frame. Raises EOFError when the stream ended, IntegrityError for what is no frame."""
    mark, kind, num_integers, num_bytes = _HEADER.unpack(_receive(stream, _HEADER.size))
    if mark != _MARK or kind not in FrameKind.__members__.values():
        raise IntegrityError(f"a frame begins with {mark!r} and the kind {kind}, expected {_MARK!r} and a known kind")
    _check_size(8 * num_integers + num_bytes, max_bytes)
    integers = np.frombuffer(_receive(stream, 8 * num_integers), dtype="<i8").astype(np.int64, copy=False)
    return Frame(FrameKind(kind), integers, bytes(_receive(stream, num_bytes)))


def _receive(stream: socket.socket, num_bytes: int) -> bytearray:
    received = bytearray(num_bytes)
    view = memoryview(received)
    while view:
        num_new = stream.recv_into(view)
        if num_new == 0:
            raise EOFError("the other side has closed the stream")
        view = view[num_new:]
    return received


def _check_size(num_bytes: int, max_bytes: int = MAX_FRAME_BYTES) -> None:
    if num_bytes > max_bytes:
        raise IntegrityError(f"a frame of {num_bytes} bytes, at most {max_bytes} are read")
