"""RouterServer: the router process put together: controller, dispatcher and gRPC API, started and stopped in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Protocol

from router.api.client_ports import ClientPorts
from router.control.controller import Controller, Progress
from router.control.detached.remote_controller import Handle, RemoteController
from router.control.launcher import Launcher
from router.control.membership import Membership
from router.control.scaling.figures import ActorFigures
from router.control.scaling.metrics import ScalingMetrics
from router.control.scaling.scaling_loop import ScalingLoop
from router.dispatch.dispatcher import Dispatcher
from router.processes.first_process import FirstProcess
from router.processes.share import share_of
from triptych.config import DeploymentConfig
from triptych.models_folder import model_name, resolve_model_folder
from triptych.rpc.channels import ChannelPool
from triptych.rpc.tls import StageTls

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
# Calls that were cut, and actors that were told to end, get that long to say good-bye.
_STOP_GRACE_S = 5.0


class ActorCluster(Protocol):
    """Where the actors run; `control/cluster.py` is the real one."""

    def launcher(self, config: DeploymentConfig, channels: ChannelPool) -> Launcher:
        """Makes actors there."""
        ...

    def controller(self, config: DeploymentConfig) -> Handle:
        """Finds or makes the controller that is an actor of its own (control.detached)."""
        ...

    def end_at_once(self) -> None:
        """Ends by force what would stay behind when this process exits now."""
        ...


class RouterServer:
    """`start` brings the system up, `stop` takes it down. Belongs to one event loop.

    Making one reads the model's tokenizer and configuration; raises ModelError or ConfigurationError.
    """

    def __init__(self, config: DeploymentConfig, cluster: ActorCluster) -> None:
        config = share_of(config)
        self._config = config
        name = model_name(config.model.path, config.model.name)
        folder = resolve_model_folder(config.model.path)
        membership = Membership()
        self._channels = ChannelPool(config.limits.max_message_bytes, StageTls.from_config(config.security.stages))
        self.dispatcher = Dispatcher(config, name, folder, membership, self._channels)
        self.controller: Controller | RemoteController
        if config.control.detached:
            self.controller = RemoteController(cluster.controller(config), membership, self._channels)
        else:
            launcher = cluster.launcher(config, self._channels)
            self.controller = Controller(config, launcher, membership, load_of=self.dispatcher.load_of)
        self.first = FirstProcess(config, membership) if config.router.processes > 1 else None
        self._ports = ClientPorts(
            config,
            name,
            self.dispatcher,
            membership,
            self._channels,
            self.controller,
            self.first.shared if self.first is not None else None,
        )
        self.scaling = ScalingLoop(
            config,
            self.controller,
            self.dispatcher,
            membership,
            ActorFigures(self._channels, config.control.health_timeout_s).ask,
            ScalingMetrics(name, self._ports.answering.metrics.registry),
        )

    @property
    def http_endpoint(self) -> str:
        """URL of the HTTP API once it listens; empty when there is none."""
        return self._ports.http_endpoint

    async def start(self, progress: Progress | None = None) -> str:
        """Returns host:port of gRPC when every stage is ready. Raises what keeps it from that; `stop` it then too.

        The ports are bound first, so that one already taken is noticed before actors start; health says NOT_SERVING
        until they are there.
        """
        endpoint = await self._ports.start()
        if self.first is not None:
            await self.first.start(self._ports)
        await self.controller.start(progress)
        self.scaling.start()
        await self._ports.set_serving(True)
        if self.first is not None:
            self.first.set_serving(True)
        return endpoint

    async def stop(self) -> None:
        """Takes no new requests, lets running ones finish within control.drain_timeout_s, ends all actors."""
        await self.scaling.stop()
        async with asyncio.TaskGroup() as group:
            if self.first is not None:
                group.create_task(self.first.stop())
            group.create_task(
                self._ports.stop(self._config.control.drain_timeout_s if self.dispatcher.num_pending else _STOP_GRACE_S)
            )
        await self.dispatcher.close()
        await self.controller.stop(_STOP_GRACE_S)
        await self._channels.close()


async def serve_until_signal(
    config: DeploymentConfig,
    cluster: ActorCluster,
    progress: Progress | None = None,
    on_ready: Callable[[str, str], None] = lambda endpoint, http_endpoint: None,
    on_stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGINT or SIGTERM, then stops in order; the second signal ends the process at once.

    Raises what keeps the system from starting, after taking down what had started.
    """
    server = RouterServer(config, cluster)
    interrupted = asyncio.Event()
    _on_signals(interrupted, cluster)
    try:
        await _start_unless(interrupted, server, progress, on_ready)
        await interrupted.wait()
        on_stopping()
    finally:
        await server.stop()


async def _start_unless(
    interrupted: asyncio.Event, server: RouterServer, progress: Progress | None, on_ready: Callable[[str, str], None]
) -> None:
    starting = asyncio.create_task(server.start(progress))
    waiting = asyncio.create_task(interrupted.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if starting.done():
        on_ready(starting.result(), server.http_endpoint)
        return
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


def _on_signals(interrupted: asyncio.Event, cluster: ActorCluster) -> None:
    def handle() -> None:
        if interrupted.is_set():
            cluster.end_at_once()
            os._exit(EXIT_INTERRUPTED)
        interrupted.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, handle)
