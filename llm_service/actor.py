"""The LLM actor: one process with one stage in one role, served over gRPC.

A plain class: the controller makes a Ray actor of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_service.collector import spare_the_collector
from llm_service.embedder import BuildEmbedder, Embedder
from llm_service.loading import LoadedModel
from llm_service.parallel.leader import LeaderLink
from llm_service.parallel.rank_info import describe_rank
from llm_service.parallel.rendezvous import Rendezvous
from llm_service.role import Role
from llm_service.service import LanguageService
from llm_service.stage import LlmStage
from triptych.config import DeploymentConfig, LanguageSection
from triptych.errors import ConfigurationError, Unavailable
from triptych.precision import resolve_device
from triptych.rpc.actor_admin import ActorAdminService
from triptych.rpc.channels import ChannelPool
from triptych.rpc.server import RpcServer
from triptych.rpc.tls import StageTls, stage_server_credentials
from triptych.switch import SWITCH, is_multimodal_disaggregated
from triptych.telemetry.call_scope import CallScopes
from triptych.telemetry.tracing import Tracing
from triptych.transport.device_id import device_id
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import host_id, new_incarnation_id
from triptych.transport.lease import LeaseTable
from triptych.transport.service import TensorService
from triptych.transport.ticket import dtype_to_proto
from triptych.transport.wire import add_tensor_service
from triptych.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    language_pb2,
    language_pb2_grpc,
    tensor_pb2,
)

logger = logging.getLogger(__name__)

# Calls that run when the actor stops have been failed already; this is for their answers to leave.
_STOP_GRACE_S = 1.0

HoldWeights = Callable[[Sequence[Tensor]], None]
"""May give the weights other memory; called before anything is computed with them."""


@dataclass
class _Parts:
    """What `start` has made so far, in that order; `stop` lets go of it in reverse."""

    channels: ChannelPool
    rendezvous: Rendezvous | None = None
    link: LeaderLink | None = None
    ranks: tuple[admin_pb2.RankInfo, ...] = ()
    embedder: Embedder | None = None
    fetcher: TensorFetcher | None = None
    stage: LlmStage | None = None
    tensor_service: TensorService | None = None
    server: RpcServer | None = None
    engine_watch: asyncio.Task[None] | None = None
    tracing: Tracing | None = None


class LlmActor:
    """`start`, then calls over gRPC, then `drain` and `stop`.

    The switch is read once, in `start`. With 0 and a `build_embedder` the actor carries a vision tower; with 1 it
    builds none, whatever it was given. `host` is the address at which other actors reach this process.
    """

    def __init__(
        self,
        config: DeploymentConfig,
        role: str,
        build_embedder: BuildEmbedder | None = None,
        host: str = "127.0.0.1",
        hold_weights: HoldWeights | None = None,
    ) -> None:
        self._config = config
        self._role = Role(role)
        self._build_embedder = build_embedder
        self._host = host
        self._hold_weights = hold_weights
        self._actor_id = new_incarnation_id(role.replace("_", "-"))
        self._endpoint = ""
        self._is_disaggregated = False
        self._model: LoadedModel | None = None
        self._parts = _Parts(ChannelPool(config.limits.max_message_bytes, StageTls.from_config(config.security.stages)))

    async def rendezvous(self) -> str:
        """Where the other ranks of this actor are to come; to be asked before `start` when there are any
        (`stages.*.tensor_parallel`)."""
        if self._parts.rendezvous is None:
            self._parts.rendezvous = Rendezvous(self._host)
        return self._parts.rendezvous.address.to_text()

    async def start(self) -> bytes:
        """Loads the language model (and the tower with the switch off), serves, answers the serialized ActorInfo.

        Raises ModelError or ConfigurationError, and leaves nothing behind then.
        """
        section: LanguageSection = getattr(self._config.stages, self._role)
        torch.set_num_threads(section.num_threads)
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        info = self._describe()
        logger.info(
            "%s serves at %s with %d language and %d visual parameters (%s=%d)",
            info.actor_id,
            info.endpoint,
            info.weights.num_language_parameters,
            info.weights.num_visual_parameters,
            SWITCH,
            self._is_disaggregated,
        )
        return info.SerializeToString()

    async def drain(self, timeout_s: float) -> bool:
        """Takes no new work; True when all requests have ended and all KV pages were fetched within `timeout_s`."""
        stage, server = self._running()
        await server.set_serving(False)
        return await stage.drain(timeout_s)

    async def pause(self, timeout_s: float) -> bool:
        """Takes no new work until `resume`; what runs after `timeout_s` ends with Unavailable. True when nothing is
        left that computes."""
        stage, server = self._running()
        await server.set_serving(False)
        return await stage.pause(timeout_s)

    async def resume(self) -> None:
        """Takes work again, after `pause`."""
        stage, server = self._running()
        stage.resume()
        await server.set_serving(True)

    def describe(self) -> admin_pb2.ActorInfo:
        """Itself, at this moment. Raises Unavailable before `start`."""
        return self._describe()

    def set_role(self, role: Role, drain_s: float) -> int:
        """Takes work of `role` from now on; how many requests run on though they are of another."""
        return self._running()[0].switch_role(role, drain_s)

    async def stop(self) -> None:
        """Ends what runs with Unavailable and lets go of everything. Idempotent."""
        parts = self._parts
        if parts.engine_watch is not None:
            parts.engine_watch.cancel()
        if parts.stage is not None:
            await parts.stage.close()
        if parts.rendezvous is not None:
            parts.rendezvous.close()
        if parts.link is not None:
            await asyncio.to_thread(parts.link.close)
        if parts.tensor_service is not None:
            parts.tensor_service.close_links()
        if parts.server is not None:
            await parts.server.stop(_STOP_GRACE_S)
        if parts.tensor_service is not None:
            parts.tensor_service.close()
        if parts.fetcher is not None:
            await parts.fetcher.close()
        if parts.embedder is not None:
            await parts.embedder.close()
        await parts.channels.close()
        if parts.tracing is not None:
            await parts.tracing.close()

    async def ping(self) -> str:
        """The incarnation id, for who asks whether this process lives. Raises Unavailable when its engine does not."""
        stage = self._parts.stage
        if stage is not None and not stage.is_alive:
            raise Unavailable(f"the engine of {self._actor_id} has ended")
        return self._actor_id

    async def _start(self) -> None:
        config, parts = self._config, self._parts
        self._is_disaggregated = is_multimodal_disaggregated()
        parts.tracing = Tracing.open(config.telemetry, self._role, self._actor_id)
        link = parts.link = await self._gather_followers()
        collectives = None if link is None else link.collectives
        self._model = model = await asyncio.to_thread(LoadedModel.load, config.model, collectives)
        if self._hold_weights is not None:
            await asyncio.to_thread(self._hold_weights, [*model.language.parameters(), *model.language.buffers()])
        if link is not None:
            parts.ranks = (describe_rank(0, model), *await asyncio.to_thread(link.wait_loaded))
        if not self._is_disaggregated and self._build_embedder is None:
            raise ConfigurationError(
                f"{SWITCH}=0, but this LLM actor was given no vision tower to carry: set it to 1 (mode: disaggregated)",
                field=SWITCH,
            )
        if not self._is_disaggregated and self._build_embedder is not None:
            parts.embedder = await self._build_embedder(config, self._actor_id)
        leases = LeaseTable(config.transport.lease_s, config.transport.unknown_ticket_wait_s)
        parts.fetcher = TensorFetcher(
            parts.channels, self._actor_id, host_id(), config.transport, model.fingerprint, model.device
        )
        parts.stage = stage = LlmStage(self._role, config, model, parts.fetcher, leases, parts.embedder, link)
        parts.tensor_service = TensorService(leases, self._actor_id, model.fingerprint, config.transport, model.device)
        parts.server = server = RpcServer(
            self._host,
            0,
            config.limits.max_message_bytes,
            credentials=stage_server_credentials(config.security.stages),
        )
        self._add_services(server, stage, parts.tensor_service)
        stage.start()
        await stage.wait_ready()
        if model.device.type == "cuda":
            spare_the_collector()
        self._endpoint = f"{self._host}:{await server.start()}"
        await server.set_serving(True)
        parts.engine_watch = asyncio.create_task(self._watch_engine(stage, server), name="llm-engine-watch")

    async def _gather_followers(self) -> LeaderLink | None:
        """The link to this actor's other ranks; None when it has none."""
        section: LanguageSection = getattr(self._config.stages, self._role)
        size = section.tensor_parallel
        if size == 1:
            return None
        await self.rendezvous()
        rendezvous, device = self._parts.rendezvous, resolve_device(self._config.model)
        assert rendezvous is not None
        timeout_s = self._config.control.start_timeout_s
        return await asyncio.to_thread(LeaderLink.gather, rendezvous, size, device, timeout_s)

    async def _watch_engine(self, stage: LlmStage, server: RpcServer) -> None:
        """An engine that ended by itself, or has lost a part of the model, makes the actor useless: it answers nobody
        any more, as if it had died, so that routers turn to others at once, and is replaced."""
        ends = [asyncio.ensure_future(stage.wait_ended())]
        if self._parts.link is not None:
            ends.append(asyncio.ensure_future(_wait_for(self._parts.link.lost)))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        logger.error("the engine of %s has ended; the actor serves no more", self._actor_id)
        # Together: what still runs is told why it ends, and what is new finds nobody.
        await asyncio.gather(stage.close(), server.stop(_STOP_GRACE_S))

    def _add_services(self, server: RpcServer, stage: LlmStage, tensor_service: TensorService) -> None:
        server.add(
            language_pb2_grpc.add_LanguageServiceServicer_to_server,
            LanguageService(stage, self._config.defaults.timeout_s, CallScopes(self._parts.tracing)),
            language_pb2.DESCRIPTOR.services_by_name["LanguageService"].full_name,
        )
        server.add(
            add_tensor_service,
            tensor_service,
            tensor_pb2.DESCRIPTOR.services_by_name["TensorService"].full_name,
        )
        server.add(
            admin_pb2_grpc.add_AdminServiceServicer_to_server,
            ActorAdminService(self._describe, self._set_role),
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
        )

    def _describe(self) -> admin_pb2.ActorInfo:
        stage, _ = self._running()
        model, tensor_service, embedder = self._model, self._parts.tensor_service, self._parts.embedder
        assert model is not None and tensor_service is not None
        weights = embedder.weights() if embedder is not None else admin_pb2.Weights()
        others = [info.weights for info in self._parts.ranks[1:]]
        leases = stage.leases.counters()
        return admin_pb2.ActorInfo(
            actor_id=self._actor_id,
            stage=stage.roles.role.stage,
            endpoint=self._endpoint,
            host_id=host_id(),
            process_id=os.getpid(),
            model_fingerprint=model.fingerprint,
            dtype=dtype_to_proto(model.dtype),
            lanes=tensor_service.lanes,
            multimodal_disaggregated=self._is_disaggregated,
            weights=admin_pb2.Weights(
                num_visual_parameters=weights.num_visual_parameters,
                num_language_parameters=model.num_parameters
                + weights.num_language_parameters
                + sum(other.num_language_parameters for other in others),
                num_bytes=model.num_bytes + weights.num_bytes + sum(other.num_bytes for other in others),
            ),
            ranks=self._parts.ranks,
            encoder=embedder.counters() if embedder is not None else None,
            language=stage.counters(),
            leases=leases.to_proto(),
            device_id=device_id(model.device),
            lane_counters=self._parts.fetcher.lane_counters() if self._parts.fetcher is not None else (),
            state=admin_pb2.ACTOR_STATE_DRAINING if stage.is_draining else admin_pb2.ACTOR_STATE_READY,
        )

    def _set_role(self, request: admin_pb2.SetRoleRequest) -> int:
        return self.set_role(Role.of_stage(request.stage), request.drain_s)

    def _running(self) -> tuple[LlmStage, RpcServer]:
        if self._parts.stage is None or self._parts.server is None:
            raise Unavailable(f"{self._actor_id} was not started")
        return self._parts.stage, self._parts.server


async def _wait_for(future: Future[str]) -> None:
    """Without ending it when this is cancelled."""
    await asyncio.shield(asyncio.wrap_future(future))
