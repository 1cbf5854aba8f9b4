"""RouterChild: a router process beside the first, put together: dispatcher and client ports, no controller."""

from __future__ import annotations

import asyncio
from pathlib import Path

from router.api.client_ports import ClientPorts, SharedPorts
from router.control.membership import Membership
from router.dispatch.dispatcher import Dispatcher
from router.processes.forwarded_admin import ForwardedAdmin
from router.processes.membership_follower import MembershipFollower
from router.processes.peer_server import PeerServer
from router.processes.shared_metrics import SharedMetrics
from router.processes.sockets import FIRST, address
from triptych.config import DeploymentConfig
from triptych.models_folder import model_name, resolve_model_folder
from triptych.rpc.channels import ChannelPool
from triptych.rpc.tls import StageTls

# Calls that were cut get that long to say good-bye.
_STOP_GRACE_S = 5.0


class RouterChild:
    """`config` is this process's share, with the ports that the first process got."""

    def __init__(self, config: DeploymentConfig, folder: Path, number: int) -> None:
        self._config = config
        name = model_name(config.model.path, config.model.name)
        max_message_bytes = config.limits.max_message_bytes
        membership = Membership()
        self._channels = ChannelPool(max_message_bytes, StageTls.from_config(config.security.stages))
        self._peers = ChannelPool(max_message_bytes)
        first = self._peers.get(address(folder, FIRST))
        self._dispatcher = Dispatcher(config, name, resolve_model_folder(config.model.path), membership, self._channels)
        metrics = SharedMetrics(folder, config.router.processes, self._peers)
        shared = SharedPorts(ForwardedAdmin(first), metrics.page)
        self._ports = ClientPorts(config, name, self._dispatcher, membership, self._channels, None, shared)
        self._server = PeerServer(folder, number, max_message_bytes, self._ports.metrics_page)
        self._follower = MembershipFollower(membership, first, self._ports.set_serving)

    async def start(self) -> asyncio.Task[None]:
        """Listens; the task ends, with a TriptychError, when the first process is heard of no more."""
        await self._server.start()
        following = asyncio.create_task(self._follower.run(), name="membership")
        await self._ports.start()
        return following

    async def stop(self) -> None:
        """Takes no new requests, lets running ones finish within control.drain_timeout_s."""
        is_busy = self._dispatcher.num_pending > 0
        await self._ports.stop(self._config.control.drain_timeout_s if is_busy else _STOP_GRACE_S)
        await self._dispatcher.close()
        await self._server.stop(0)
        await self._channels.close()
        await self._peers.close()
