"""OrphanGuard: clears up what a local Ray cluster leaves when its driver is killed: two helper processes, and the
shared memory of the actors.

On Linux the local cluster's main processes die with the driver (PR_SET_PDEATHSIG), and workers with them. The agents
that the raylet started do not: they notice, but then wait 80 s for a control store that is gone. The guard is a tiny
process of its own that waits for the end of its parent, then ends those agents and removes the files that actors
ended by force could not remove.
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
_END_TIMEOUT_S = 1.0
# What tells the guard that the cluster was shut down in order: there is nothing left to remove.
_RELEASED = b"released"
# Again and again: actors hold their files until they have ended, which takes a Python with torch some seconds.
_SWEEP = """
import time
from triptych.transport.shared_memory import sweep_dead_slabs
for _ in range(20):
    sweep_dead_slabs()
    time.sleep(0.5)
"""
_SWEEP_TIMEOUT_S = 60.0


class OrphanGuard:
    """Holds the pipe whose end tells the guard process that this process is gone."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls) -> OrphanGuard | None:
        """Guards what the raylets of this process have started by now; None where there is nothing, or no /proc."""
        raylets = _local_processes("raylet")
        marks = [_mark(child) for raylet in raylets for child in processes_of(raylet)]
        if not raylets:
            return None
        command = [sys.executable, "-S", "-E", __file__, *marks]
        # A session of its own: Ctrl-C in the terminal must not end the guard before the guarded.
        return cls(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))

    def release(self) -> None:
        """Ends the guard after one last look; the cluster was shut down."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(_RELEASED)
                self._process.stdin.close()
            except BrokenPipeError:
                return  # It was ended from outside.
        try:
            self._process.wait(timeout=10 * _GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def processes_of(parent: int) -> list[int]:
    """Processes whose parent is `parent`."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()] if PROC.is_dir() else []
    return [pid for pid in pids if (fields := _fields(pid)) and int(fields[1]) == parent]


def end_local_cluster() -> None:
    """Kills the Ray processes that this process started, workers included, and waits up to a second for their end."""
    roots = _local_processes("raylet", "gcs_server")
    pids = [*roots, *(pid for root in roots for pid in _descendants(root))]
    for pid in pids:
        _kill(pid)
    deadline = time.monotonic() + _END_TIMEOUT_S
    while any((fields := _fields(pid)) and fields[0] != "Z" for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


def end_marked(marks: list[str]) -> None:
    """Waits for the end of standard input, then ends the marked processes that are still there.

    Unless the input says that the cluster was shut down in order, removes the shared memory of dead actors, too.
    """
    word = sys.stdin.buffer.read()
    time.sleep(_GRACE_S)
    for mark in marks:
        pid = int(mark.partition(":")[0])
        # The start time tells a process from a later one with the same number.
        if _mark(pid) == mark:
            _kill(pid)
    if word != _RELEASED:
        # A process of its own: the guard starts without packages, so that it costs next to nothing while it waits.
        quiet = subprocess.DEVNULL
        command = [sys.executable, "-c", _SWEEP]
        subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=_SWEEP_TIMEOUT_S, check=False)


def _local_processes(*names: str) -> list[int]:
    return [pid for pid in processes_of(os.getpid()) if _name(pid) in names]


def _descendants(parent: int) -> list[int]:
    children = processes_of(parent)
    return [*children, *(pid for child in children for pid in _descendants(child))]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


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
