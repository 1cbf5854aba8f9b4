"""Can the router listen where it should? Asked before Ray and the actors are started, which takes seconds."""

from __future__ import annotations

import errno
import socket

from triptych.errors import ConfigurationError


def check_listen_address(host: str, port: int, key: str = "port") -> None:
    """Raises ConfigurationError, naming the flag to change, when host:port can't be bound. Port 0: any free one.

    `key` is the port's name in the configuration's section router.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server itself does: connections of an earlier router that still fade away are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        is_about_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        flag = key.replace("_", "-")
        hint = (
            f"choose another with --{flag} (router.{key}); --{flag} 0 takes any free one"
            if is_about_port
            else "expected an address of this machine: --host (router.host)"
        )
        raise ConfigurationError(
            f"can't listen on {host}:{port}: {error.strerror or error}; {hint}",
            field=f"router.{key}" if is_about_port else "router.host",
        ) from None
