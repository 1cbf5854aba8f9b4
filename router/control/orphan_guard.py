"""OrphanGuard: ends the two helper processes that Ray leaves for over a minute when the driver is killed.

On Linux the local cluster's main processes die with the driver (PR_SET_PDEATHSIG), and workers with them. The agents
that the raylet started do not: they notice, but then wait 80 s for a control store that is gone. The guard is a tiny
process of its own that waits for the end of its parent and then ends those agents.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROC = Path("/proc")
# Processes get that long to end by themselves.
_GRACE_S = 0.5


class OrphanGuard:
    """Holds the pipe whose end tells the guard process that this process is gone."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls) -> OrphanGuard | None:
        """Guards what the raylets of this process have started by now; None where there is nothing, or no /proc."""
        raylets = [pid for pid in processes_of(os.getpid()) if _name(pid) == "raylet"]
        marks = [_mark(child) for raylet in raylets for child in processes_of(raylet)]
        if not marks:
            return None
        command = [sys.executable, "-S", "-E", __file__, *marks]
        # A session of its own: Ctrl-C in the terminal must not end the guard before the guarded.
        return cls(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))

    def release(self) -> None:
        """Ends the guard after one last look; the cluster was shut down."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10 * _GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def processes_of(parent: int) -> list[int]:
    """Processes whose parent is `parent`."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()] if PROC.is_dir() else []
    return [pid for pid in pids if (fields := _fields(pid)) and int(fields[1]) == parent]


def end_marked(marks: list[str]) -> None:
    """Waits for the end of standard input, then ends the marked processes that are still there."""
    sys.stdin.buffer.read()
    time.sleep(_GRACE_S)
    for mark in marks:
        pid = int(mark.partition(":")[0])
        # The start time tells a process from a later one with the same number.
        if _mark(pid) == mark:
            os.kill(pid, signal.SIGKILL)


def _mark(pid: int) -> str:
    """Number and start time: names one process for good."""
    fields = _fields(pid)
    return f"{pid}:{fields[19]}" if fields else f"{pid}:gone"


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _fields(pid: int) -> list[str]:
    """Of /proc/<pid>/stat, what follows "pid (name) ": state, parent, ...; empty when there is no such process."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


if __name__ == "__main__":
    end_marked(sys.argv[1:])
