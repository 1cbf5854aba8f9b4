"""HttpServer: uvicorn on the router's event loop, started and stopped with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from triptych.config.access import ClientTlsSection
from triptych.errors import ConfigurationError

_BACKLOG = 2_048
_IDLE_CONNECTION_S = 75  # longer than the 60 s after which common load balancers give up a connection


class HttpServer:
    """Serves `app` on host:port; `port` 0 takes any free one, with `reuse_port` other processes may too.

    h11 is the parser that bounds the head of a request.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, tls: ClientTlsSection, *, reuse_port: bool = False) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._tls = tls
        self._reuse_port = reuse_port
        self._server: _Server | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Returns the port. Raises ConfigurationError for a taken address or an unusable certificate."""
        config = uvicorn.Config(
            self._app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE_CONNECTION_S,
            ssl_certfile=self._tls.certificate or None,
            ssl_keyfile=self._tls.key or None,
        )
        try:
            config.load()
        except OSError as error:
            raise ConfigurationError(
                f"security.clients: can't use the certificate: {error}", field="security.clients.certificate"
            ) from None
        listener = _listen(self._host, self._port, self._reuse_port)
        port = int(listener.getsockname()[1])
        self._server = server = _Server(config)
        self._running = running = asyncio.create_task(server.serve([listener]), name="http server")
        starting = asyncio.create_task(server.is_started.wait())
        await asyncio.wait((starting, running), return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if running.done():
            await running
        return port

    async def stop(self, grace_s: float) -> None:
        """Takes no new requests, lets running ones finish for `grace_s`, then cancels them. Idempotent."""
        if self._server is None or self._running is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        await self._running
        self._server = None


class _Server(uvicorn.Server):
    """Leaves the process's signals to the router, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_started.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            # Connections of an earlier router that still fade away are no hindrance; a listening one is.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"can't listen on {host}:{port} for HTTP: {error.strerror or error} (router.http_port)",
            field="router.http_port",
        ) from None
    return listener
