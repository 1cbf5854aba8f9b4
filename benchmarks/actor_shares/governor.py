"""Holds processes to a share of a core by stopping them and letting them go on; needs no privilege.

`python -m benchmarks.actor_shares.governor SHARE` reads the ids of processes, one a line, as they come; at the end of
its input it lets all of them run freely and ends. A process that ended is forgotten.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from benchmarks.actor_shares.bucket import ShareBucket

# Between two looks: a busy process runs at least that long at a time.
_LOOK_S = 0.002
# As Linux makes the id of another process's CPU clock (clock_getcpuclockid): of all threads, as the scheduler counts.
_SCHEDULED = 2


def cpu_s(process_id: int) -> float:
    """CPU time of a process in its life. Raises OSError where there is none of that id."""
    return time.clock_gettime((~process_id << 3) | _SCHEDULED)


class Governor:
    """`look` every few milliseconds; `release` at the end."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._buckets: dict[int, ShareBucket] = {}
        self._stopped: set[int] = set()

    def add(self, process_id: int) -> None:
        """From now on this process has its share."""
        try:
            self._buckets[process_id] = ShareBucket(self._share, time.monotonic(), cpu_s(process_id))
        except OSError:
            return

    def look(self) -> None:
        """Stops who has used up its share, and lets go on who may again."""
        for process_id, bucket in list(self._buckets.items()):
            try:
                may_run = bucket.may_run(time.monotonic(), cpu_s(process_id))
                if may_run and process_id in self._stopped:
                    os.kill(process_id, signal.SIGCONT)
                    self._stopped.discard(process_id)
                elif not may_run and process_id not in self._stopped:
                    os.kill(process_id, signal.SIGSTOP)
                    self._stopped.add(process_id)
            except OSError:
                del self._buckets[process_id]
                self._stopped.discard(process_id)

    def release(self) -> None:
        """All run freely."""
        for process_id in self._stopped:
            try:
                os.kill(process_id, signal.SIGCONT)
            except OSError:
                continue
        self._stopped.clear()
        self._buckets.clear()


def main() -> None:
    governor, given, ended = Governor(float(sys.argv[1])), list[int](), threading.Event()

    def read() -> None:
        for line in sys.stdin:
            given.append(int(line))
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        while not ended.wait(_LOOK_S):
            while given:
                governor.add(given.pop())
            governor.look()
    finally:
        governor.release()


if __name__ == "__main__":
    # Who presses Ctrl-C ends the benchmark, and that ends this input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
