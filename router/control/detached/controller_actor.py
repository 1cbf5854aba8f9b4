"""ControllerActor: the controller in a process of its own, which Ray starts again when it dies."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import ray.util

from router.api.admin_service import AdminService
from router.control.controller import Controller
from router.control.detached.controller_service import ControllerService, stage_views
from router.control.detached.ray_store import RayStore
from router.control.membership import Membership
from router.control.ray_launcher import RayLauncher
from router.processes.membership_service import MembershipService
from triptych.config import DeploymentConfig
from triptych.models_folder import model_name
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.rpc.tls import StageTls, stage_server_credentials
from triptych.telemetry.logs import set_up_logging
from triptych.v1 import admin_pb2, admin_pb2_grpc, router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)


class ControllerActor:
    """Begins by itself when it is made, as nobody is there to tell it to after a crash.

    `host`: the address at which it and the actors that it makes are reached; empty: that of the node of each.
    """

    def __init__(self, config: DeploymentConfig, host: str) -> None:
        set_up_logging(config.telemetry)
        self._config = config
        self._address = host or ray.util.get_node_ip_address()
        name = model_name(config.model.path, config.model.name)
        self._channels = ChannelPool(config.limits.max_message_bytes, StageTls.from_config(config.security.stages))
        self._membership = Membership()
        self._store = RayStore(config.control.namespace)
        launcher = RayLauncher(config, self._channels, host, are_detached=True)
        self._controller = controller = Controller(config, launcher, self._membership, store=self._store)
        self._members = MembershipService(self._membership, partial(stage_views, controller))
        controller.on_published(self._members.publish)
        self._server = RpcServer(
            self._address,
            0,
            config.limits.max_message_bytes,
            credentials=stage_server_credentials(config.security.stages),
        )
        self._server.add(
            router_pb2_grpc.add_MembershipServiceServicer_to_server,
            self._members,
            router_pb2.DESCRIPTOR.services_by_name["MembershipService"].full_name,
        )
        self._server.add(
            router_pb2_grpc.add_ControllerServiceServicer_to_server,
            ControllerService(controller),
            router_pb2.DESCRIPTOR.services_by_name["ControllerService"].full_name,
        )
        self._server.add(
            admin_pb2_grpc.add_AdminServiceServicer_to_server,
            AdminService(config, name, self._membership, self._channels, controller),
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
        )
        self._begun = asyncio.get_running_loop().create_task(self._begin())

    async def endpoint(self) -> str:
        """host:port of its gRPC services, once it knows every actor that is there."""
        return await asyncio.shield(self._begun)

    async def configuration(self) -> str:
        """The deployment's, as JSON: that which the first router gave it."""
        return self._config.model_dump_json()

    async def end(self, grace_s: float) -> None:
        """Ends all actors, and forgets what was wanted; this process is to be ended next."""
        await asyncio.shield(self._begun)
        await self._controller.stop(grace_s)
        self._store.clear()
        await self._server.stop(0)

    async def _begin(self) -> str:
        await self._controller.begin()
        port = await self._server.start()
        await self._server.set_serving(True)
        logger.info("the controller serves at %s:%d", self._address, port)
        return f"{self._address}:{port}"
