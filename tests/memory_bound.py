"""How much memory a piece of a test may take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20


@contextmanager
def bounded_memory(peak_bytes: int) -> Iterator[None]:
    """Asserts that resident memory never stood more than `peak_bytes` over where it is now."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident_bytes("VmRSS")
    yield
    grown = _resident_bytes("VmHWM") - before
    assert grown <= peak_bytes, f"memory grew by {grown / MIB:.0f} MiB, expected at most {peak_bytes / MIB:.0f}"


def _resident_bytes(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024
