"""What both clients need to reach a router: a token in every call, and the authority behind its certificate."""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from triptych.errors import ConfigurationError

# A PEM file of certificates to trust, or True for those that gRPC brings along; False is no TLS.
Authority = str | os.PathLike[str] | bool


def token_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata of every call; none without a token."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def channel_credentials(authority: Authority) -> grpc.ChannelCredentials | None:
    """None without TLS. Raises ConfigurationError for a file that can't be read."""
    if isinstance(authority, bool):
        return grpc.ssl_channel_credentials() if authority else None
    try:
        return grpc.ssl_channel_credentials(Path(authority).expanduser().read_bytes())
    except OSError as error:
        raise ConfigurationError(f"can't read {authority}: {error.strerror}", field="authority") from None
