"""The network beneath the HTTP client: a name is resolved once, and what was checked is what is connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore2

from router.api.fetch.addresses import AddressRules

MAX_ADDRESSES_TRIED = 4

# host, port -> addresses as text
Resolve = Callable[[str, int], Awaitable[list[str]]]


class AddressRefused(Exception):
    """A name stands for an address that must not be connected to."""


async def resolve(host: str, port: int) -> list[str]:
    """Addresses of a name, as the system's resolver has them. Raises OSError for an unknown one."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Refuses a name of which any address is not allowed; otherwise connects to the addresses that were checked.

    TLS still proves the name: the certificate is compared with the URL's host.
    """

    def __init__(self, rules: AddressRules, resolve: Resolve) -> None:
        self._rules = rules
        self._resolve = resolve
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises AddressRefused, OSError when the name is not known, httpcore2.ConnectError."""
        addresses = await self._resolve(host, port)
        if not addresses or not all(self._rules.is_allowed(address) for address in addresses):
            raise AddressRefused(host)
        *others, last = addresses[:MAX_ADDRESSES_TRIED]
        for address in others:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._network.connect_tcp(last, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Never: media come over TCP."""
        raise AddressRefused(path)
