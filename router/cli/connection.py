"""A client for the commands that talk to a running system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triptych.client import Client
from triptych.errors import TriptychError, Unavailable


@contextmanager
def connected(endpoint: str, timeout_s: float) -> Iterator[Client]:
    """A client; when nothing answers at `endpoint`, the error says what to look at."""
    with Client(endpoint, timeout_s=timeout_s) as client:
        try:
            yield client
        except Unavailable as error:
            raise TriptychError(f"{error} (is `triptych serve` running there? --endpoint says where)") from None
