"""Where the two ends of a link meet: a key-value store that the producer serves on a port of its own."""

from __future__ import annotations

import ipaddress
import socket
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from triptych.errors import InvalidRequest, Unavailable


def split_endpoint(endpoint: str) -> str:
    """The host of "host:port", without the brackets of IPv6."""
    return endpoint.rpartition(":")[0].strip("[]")


def address_toward(host: str) -> str:
    """This machine's address on the way to `host`; blocks while a name is resolved. Raises Unavailable."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # Chooses the route; a datagram socket sends nothing.
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Unavailable(f"no way from here to {host}: {error}") from None


def check_address(host: str) -> None:
    """Raises InvalidRequest unless `host` is an IP address: no name is looked up for a caller."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise InvalidRequest(
            f"consumer_host={host[:64]!r}: expected an IP address", field="open.consumer_host"
        ) from None


class Meeting:
    """The producer's store; listens on one address only, for as long as the link opens."""

    def __init__(self, own_host: str, timeout_s: float) -> None:
        family = socket.AF_INET6 if ":" in own_host else socket.AF_INET
        listener = socket.create_server((own_host, 0), family=family, backlog=2)
        self.port: int = listener.getsockname()[1]
        self.store: Any = TCPStore(
            own_host,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),
        )


def join_meeting(host: str, port: int, timeout_s: float) -> Any:
    """The consumer's view of the store; blocks. Raises RuntimeError."""
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
