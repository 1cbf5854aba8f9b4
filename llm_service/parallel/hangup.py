"""HangupWatch: notices at once when a stream's other side is gone, whatever this side is doing."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Mapping


class HangupWatch:
    """Calls `on_hangup(rank)` once, from a thread of its own, when the first of the streams has been closed there."""

    def __init__(self, streams: Mapping[int, socket.socket], on_hangup: Callable[[int], None]) -> None:
        self._ranks = {stream.fileno(): rank for rank, stream in streams.items()}
        self._on_hangup = on_hangup
        self._wake_receiver, self._wake_sender = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="rank-hangup-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the watch; to be called before the streams are closed here. Idempotent."""
        if self._wake_sender < 0:
            return
        os.close(self._wake_sender)
        self._wake_sender = -1
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _watch(self) -> None:
        poll = select.poll()
        for file in self._ranks:
            # Not for what there is to read: that is for whoever reads the stream.
            poll.register(file, getattr(select, "POLLRDHUP", 0))
        poll.register(self._wake_receiver, 0)
        events = poll.poll()
        os.close(self._wake_receiver)
        gone = [self._ranks[file] for file, _ in events if file in self._ranks]
        if gone and len(gone) == len(events):
            self._on_hangup(gone[0])
