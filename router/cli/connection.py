"""A client for the commands that talk to a running system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from triptych.client import Client
from triptych.config import CLIENT_VARIABLES
from triptych.errors import PermissionDenied, TriptychError, Unauthenticated, Unavailable


@contextmanager
def connected(endpoint: str, timeout_s: float) -> Iterator[Client]:
    """A client with the token and the authority of the environment; errors say what to look at."""
    token, authority = (os.environ.get(name, "") for name in CLIENT_VARIABLES)
    with Client(endpoint, timeout_s=timeout_s, token=token, authority=authority or False) as client:
        try:
            yield client
        except (Unauthenticated, PermissionDenied) as error:
            raise TriptychError(f"{error} (the environment variable {CLIENT_VARIABLES[0]} holds the token)") from None
        except Unavailable as error:
            raise TriptychError(f"{error} (is `triptych serve` running there? --endpoint says where)") from None
