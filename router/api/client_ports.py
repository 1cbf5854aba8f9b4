"""ClientPorts: everything that clients connect to, gRPC and HTTP, over one answering service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.api.admin_service import AdminService
from router.api.answering import AnsweringService
from router.api.inference_service import InferenceService
from router.api.readiness import missing_stages
from router.api.scaler import Scaler
from router.api.stage_scrape import StageScrape
from router.control.membership import Membership
from router.dispatch.dispatcher import Dispatcher
from triptych.config import DeploymentConfig
from triptych.rpc.access import Access
from triptych.rpc.access_interceptor import AccessInterceptor
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.rpc.tls import client_server_credentials
from triptych.telemetry.actor_metrics import ActorMetrics
from triptych.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    from router.api.openai.server import HttpServer

NO_HTTP = -1
# Beside answers: admin calls, health checks, and calls that are about to be told that the router is full.
SPARE_CALLS = 256


@dataclass(frozen=True)
class SharedPorts:
    """For a router process that is one of several behind the same ports.

    admin: who answers AdminService instead of this process; None where it does so itself. metrics_page: of all.
    """

    admin: admin_pb2_grpc.AdminServiceServicer | None
    metrics_page: Callable[[], Awaitable[bytes]]


class ClientPorts:
    """Listens after `start`; says that it serves after `set_serving(True)`. Lives on one event loop.

    Raises ConfigurationError when certificates or tokens can't be read. Without a `scaler` somebody else answers
    AdminService (`shared`), and tells the metrics of the actors.
    """

    def __init__(
        self,
        config: DeploymentConfig,
        model_name: str,
        dispatcher: Dispatcher,
        membership: Membership,
        channels: ChannelPool,
        scaler: Scaler | None,
        shared: SharedPorts | None = None,
    ) -> None:
        self.answering = AnsweringService.over(dispatcher, config, model_name)
        self.http_endpoint = ""
        self.port, self.http_port = config.router.port, config.router.http_port
        self._config = config
        self._membership = membership
        self._is_serving = False
        self._scrape: StageScrape | None = None
        self.admin: admin_pb2_grpc.AdminServiceServicer
        router, security = config.router, config.security
        access = Access(security.tokens_file)
        self._rpc = RpcServer(
            router.host,
            router.port,
            config.limits.max_message_bytes,
            credentials=client_server_credentials(security.clients),
            interceptors=[AccessInterceptor(access)],
            max_concurrent_calls=config.limits.max_pending_requests + SPARE_CALLS,
            reuse_port=shared is not None,
        )
        self._rpc.add(
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            InferenceService(self.answering, access),
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
        )
        if scaler is not None:
            self.admin = AdminService(config, model_name, membership, channels, scaler, self.answering.metrics.counters)
        else:
            assert shared is not None and shared.admin is not None
            self.admin = shared.admin
        self._rpc.add(
            admin_pb2_grpc.add_AdminServiceServicer_to_server,
            self.admin,
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
        )
        self._http: HttpServer | None = None
        if router.http_port != NO_HTTP:
            # The framework loads only where the port is wanted.
            from router.api.openai.app import http_app
            from router.api.openai.server import HttpServer

            if scaler is not None:
                actors = ActorMetrics(model_name)
                self.answering.metrics.registry.register(actors)
                self._scrape = StageScrape(config.telemetry, actors, membership, channels, scaler)
            app = http_app(
                config,
                model_name,
                self.answering,
                access,
                self._what_is_missing,
                scrape=self._scrape.refresh if self._scrape is not None else None,
                shared_metrics=shared.metrics_page if shared is not None else None,
            )
            self._http = HttpServer(app, router.host, router.http_port, security.clients, reuse_port=shared is not None)

    async def start(self) -> str:
        """Binds both ports; returns host:port of gRPC, `http_endpoint` has the other."""
        host = self._config.router.host
        self.port = await self._rpc.start()
        if self._http is not None:
            scheme = "https" if self._config.security.clients.certificate else "http"
            self.http_port = await self._http.start()
            self.http_endpoint = f"{scheme}://{host}:{self.http_port}"
        return f"{host}:{self.port}"

    async def metrics_page(self) -> bytes:
        """The numbers of this process alone, and of the actors where it knows them."""
        if self._scrape is not None:
            await self._scrape.refresh()
        return self.answering.metrics.page()

    async def set_serving(self, is_serving: bool) -> None:
        """What health checks are told from now on."""
        self._is_serving = is_serving
        await self._rpc.set_serving(is_serving)

    async def stop(self, grace_s: float) -> None:
        """Takes no new requests, lets running ones finish for `grace_s`."""
        self._is_serving = False
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rpc.stop(grace_s))
            if self._http is not None:
                group.create_task(self._http.stop(grace_s))
        await self.answering.close()

    def _what_is_missing(self) -> str:
        if not self._is_serving:
            return "starting or stopping"
        encoders_may_go = self._config.scaling.encoder.min_actors == 0
        return missing_stages(self._config.mode, self._membership, encoders_may_go=encoders_may_go)
