"""Runs `triptych top`: samples on a thread, keys and frames on the main one."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from router.cli.top.frame import Frames
from router.cli.top.sample import Sample, Window, take_sample
from triptych.client import Client
from triptych.errors import TriptychError

_KEY_POLL_S = 0.1


def run_top(client: Client, interval_s: float, *, once: bool, console: Console | None = None) -> int:
    """Until q or Ctrl-C; with `once`, or where nobody looks at a terminal, one frame over one interval."""
    console = console or Console(highlight=False)
    window, frames = Window(), Frames()
    _note(window, frames, take_sample(client))
    if once or not console.is_terminal:
        time.sleep(interval_s)
        _note(window, frames, take_sample(client))
        console.print(frames.draw(window, console.width, None))
        return 0
    sampler = _Sampler(client, interval_s)
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live, _single_keys():
            while True:
                sample = sampler.take()
                if sample is not None:
                    _note(window, frames, sample)
                width, height = console.size
                live.update(frames.draw(window, width, height, sampler.trouble), refresh=True)
                if _key(_KEY_POLL_S) in ("q", "Q"):
                    return 0
    except KeyboardInterrupt:
        return 0
    finally:
        sampler.stop()


def _note(window: Window, frames: Frames, sample: Sample) -> None:
    window.add(sample)
    frames.note(window)


class _Sampler:
    """Takes a sample every interval, so that a router that hangs does not keep the keys from working."""

    def __init__(self, client: Client, interval_s: float) -> None:
        self.trouble = ""  # why there was no sample the last time
        self._client = client
        self._interval_s = interval_s
        self._newest: Sample | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="top sampler", daemon=True).start()

    def take(self) -> Sample | None:
        """The newest sample, once."""
        sample, self._newest = self._newest, None
        return sample

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self._newest = take_sample(self._client)
                self.trouble = ""
            except TriptychError as error:
                self.trouble = f"no answer from the router: {error.message}"


@contextmanager
def _single_keys() -> Iterator[None]:
    """Keys come one by one and are not shown; Ctrl-C stays what it is."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key(timeout_s: float) -> str:
    """The next key; empty when none comes in time."""
    if not sys.stdin.isatty():
        time.sleep(timeout_s)
        return ""
    import os
    import select

    ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
    return os.read(sys.stdin.fileno(), 1).decode(errors="ignore") if ready else ""
