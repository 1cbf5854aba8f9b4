"""RpcServer: a grpc.aio server with the limits, error mapping, health and reflection that every actor serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from triptych.errors import ConfigurationError
from triptych.rpc.channels import KEEPALIVE_INTERVAL_MS, KEEPALIVE_TIMEOUT_MS
from triptych.rpc.interceptor import ErrorInterceptor

AddServicer = Callable[[Any, grpc.aio.Server], None]


class RpcServer:
    """Serves the services that were added before `start`.

    `port` 0 takes any free port; `start` answers the one it got. Health answers for each service by its full name and
    for the whole server by "": NOT_SERVING until `set_serving(True)`.

    With `credentials` it speaks TLS only. `interceptors` see a call before its request is read, and may raise
    TriptychErrors in their handlers. Calls over `max_concurrent_calls` are refused by gRPC itself
    (RESOURCE_EXHAUSTED) before anything of them is read. With `reuse_port` other processes of the same user may
    listen on the port as well, and each gets a part of the connections. A `host` that begins with "unix:" is the whole
    address, that of a socket.
    """

    def __init__(
        self,
        host: str,
        port: int,
        max_message_bytes: int,
        *,
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        max_concurrent_calls: int | None = None,
        reuse_port: bool = False,
    ) -> None:
        self._address = host if host.startswith("unix:") else f"{host}:{port}"
        self._credentials = credentials
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor(), *interceptors],
            maximum_concurrent_rpcs=max_concurrent_calls,
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Two servers must never share a port unseen.
                ("grpc.so_reuseport", int(reuse_port)),
                ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                # Must stay below the clients' keepalive interval, or they are sent away with too_many_pings.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_INTERVAL_MS // 4),
            ],
        )
        self._health = health.aio.HealthServicer()
        self._services: list[str] = []
        self._is_stopped = False

    def add(self, add_to_server: AddServicer, servicer: Any, service_full_name: str) -> None:
        """Register `servicer` with its generated `add_XServicer_to_server`. Before `start` only."""
        add_to_server(servicer, self._server)
        self._services.append(service_full_name)

    async def start(self) -> int:
        """Bind and serve; returns the port. Raises ConfigurationError when the address is taken or not ours."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self.set_serving(False)
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise ConfigurationError(f"can't listen on {self._address}: {error}", field="port") from None
        await self._server.start()
        return port

    async def set_serving(self, is_serving: bool) -> None:
        """What health answers from now on, for every service and for the server as a whole."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if is_serving else states.NOT_SERVING
        await asyncio.gather(*(self._health.set(name, state) for name in ("", *self._services)))

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let running ones finish for `grace_s`, then cut them. Idempotent."""
        if self._is_stopped:
            return
        self._is_stopped = True
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def wait_for_termination(self) -> None:
        """Return when the server was stopped."""
        await self._server.wait_for_termination()
