"""One gRPC channel for each endpoint, shared by all clients of a process."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from triptych.errors import Unavailable
from triptych.rpc.tls import StageTls

# How soon a client notices a peer that vanished without closing its connection.
KEEPALIVE_INTERVAL_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 5_000


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options of every client channel: message limits, keepalive, quick reconnects."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Actors speak to one another directly; http_proxy is for the outside.
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]


class ChannelPool:
    """Channels by endpoint (host:port). Lives on one event loop; `close` ends every call that still runs.

    With `tls` every channel shows this process's certificate and wants a stage at the other end.
    """

    def __init__(self, max_message_bytes: int, tls: StageTls | None = None) -> None:
        self._options: list[tuple[str, Any]] = [*channel_options(max_message_bytes)]
        self._credentials: grpc.ChannelCredentials | None = None
        if tls is not None:
            self._options += tls.channel_options()
            self._credentials = tls.channel_credentials()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._is_closed = False

    def get(self, endpoint: str) -> grpc.aio.Channel:
        """The channel to `endpoint`, made on first use; it connects with the first call. Unavailable after close."""
        if self._is_closed:
            raise Unavailable(f"no channel to {endpoint}: this process is shutting down")
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = self._channels[endpoint] = self._open(endpoint)
        return channel

    def _open(self, endpoint: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(endpoint, options=self._options)
        return grpc.aio.secure_channel(endpoint, self._credentials, options=self._options)

    async def drop(self, endpoint: str) -> None:
        """Close the channel to an endpoint that is gone; its running calls end."""
        channel = self._channels.pop(endpoint, None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        """Close all channels; idempotent."""
        self._is_closed = True
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close() for channel in channels))
