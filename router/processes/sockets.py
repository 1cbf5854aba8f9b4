"""Where the processes of one router meet: a folder with a Unix socket for each."""

from __future__ import annotations

import tempfile
from pathlib import Path

FIRST = 0


def make_folder() -> Path:
    """A new one that only this user may enter."""
    return Path(tempfile.mkdtemp(prefix="triptych-router-"))


def address(folder: Path, number: int) -> str:
    """Of process `number`, for gRPC servers and clients; FIRST runs the controller."""
    return f"unix:{folder / str(number)}"
