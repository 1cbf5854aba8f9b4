"""The encoder actor: one process with one stage, served over gRPC.

A plain class: the controller makes a Ray actor of it.
"""

import asyncio
import logging
import os

import torch

from encoder_service.engines import HoldWeights, keep_in_place
from encoder_service.loading import load_stage
from encoder_service.service import EncoderService
from encoder_service.stage import EncoderStage
from triptych.config import DeploymentConfig
from triptych.errors import Unavailable
from triptych.rpc.actor_admin import ActorAdminService
from triptych.rpc.server import RpcServer
from triptych.rpc.tls import stage_server_credentials
from triptych.telemetry.call_scope import CallScopes
from triptych.telemetry.tracing import Tracing
from triptych.transport.device_id import device_id
from triptych.transport.host import host_id, new_incarnation_id
from triptych.transport.service import TensorService
from triptych.transport.ticket import dtype_to_proto
from triptych.transport.wire import add_tensor_service
from triptych.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    encoder_pb2,
    encoder_pb2_grpc,
    tensor_pb2,
)

logger = logging.getLogger(__name__)

# Calls that run when the actor stops have been failed already; this is for their answers to leave.
_STOP_GRACE_S = 1.0


class EncoderActor:
    """`start`, then calls over gRPC, then `drain` and `stop`.

    `host` is the address at which other actors reach this process.
    """

    def __init__(
        self, config: DeploymentConfig, host: str = "127.0.0.1", hold_weights: HoldWeights = keep_in_place
    ) -> None:
        self._config = config
        self._hold_weights = hold_weights
        self._host = host
        self._actor_id = new_incarnation_id("encoder")
        self._endpoint = ""
        self._stage: EncoderStage | None = None
        self._tensor_service: TensorService | None = None
        self._server: RpcServer | None = None
        self._watch: asyncio.Task[None] | None = None
        self._tracing: Tracing | None = None

    async def start(self) -> bytes:
        """Loads the vision tower, serves, and answers the serialized ActorInfo.

        Raises ModelError or ConfigurationError, and leaves nothing behind then.
        """
        torch.set_num_threads(self._config.stages.encoder.num_threads)
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        info = self._describe()
        logger.info(
            "%s serves at %s with %d parameters", info.actor_id, info.endpoint, info.weights.num_visual_parameters
        )
        return info.SerializeToString()

    async def drain(self, timeout_s: float) -> bool:
        """Takes no new work; True when all work was finished and fetched within `timeout_s`."""
        stage, server = self._running()
        await server.set_serving(False)
        return await stage.drain(timeout_s)

    async def pause(self, timeout_s: float) -> bool:
        """Takes no new work until `resume`; True when none was left after `timeout_s`. Then nothing computes here."""
        stage, server = self._running()
        await server.set_serving(False)
        return await stage.pause(timeout_s)

    async def resume(self) -> None:
        """Takes work again, after `pause`."""
        stage, server = self._running()
        stage.resume()
        await server.set_serving(True)

    async def stop(self) -> None:
        """Ends what runs with Unavailable and lets go of everything. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
        if self._stage is not None:
            await self._stage.close()
        if self._tensor_service is not None:
            self._tensor_service.close_links()
        if self._server is not None:
            await self._server.stop(_STOP_GRACE_S)
        if self._tensor_service is not None:
            self._tensor_service.close()
        if self._tracing is not None:
            await self._tracing.close()

    async def ping(self) -> str:
        """The incarnation id, for who asks whether this process lives. Raises Unavailable when its engine does not."""
        if self._stage is not None and not self._stage.is_alive:
            raise Unavailable(f"the engine of {self._actor_id} has ended")
        return self._actor_id

    async def _start(self) -> None:
        config = self._config
        self._tracing = Tracing.open(config.telemetry, "encoder", self._actor_id)
        self._stage = stage = await load_stage(config, self._actor_id, self._hold_weights)
        self._tensor_service = tensor_service = TensorService(
            stage.leases, self._actor_id, stage.produced.model_fingerprint, config.transport, stage.device
        )
        self._server = server = RpcServer(
            self._host,
            0,
            config.limits.max_message_bytes,
            credentials=stage_server_credentials(config.security.stages),
        )
        server.add(
            encoder_pb2_grpc.add_EncoderServiceServicer_to_server,
            EncoderService(stage, config.defaults.timeout_s, CallScopes(self._tracing)),
            encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
        )
        server.add(
            add_tensor_service,
            tensor_service,
            tensor_pb2.DESCRIPTOR.services_by_name["TensorService"].full_name,
        )
        server.add(
            admin_pb2_grpc.add_AdminServiceServicer_to_server,
            ActorAdminService(self._describe),
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
        )
        stage.start()
        self._endpoint = f"{self._host}:{await server.start()}"
        await server.set_serving(True)
        self._watch = asyncio.create_task(self._watch_stage(stage, server), name="encoder-watch")

    async def _watch_stage(self, stage: EncoderStage, server: RpcServer) -> None:
        """A stage that ended by itself makes the actor useless: it says so, and is replaced."""
        await stage.wait_ended()
        logger.error("the engine of %s has ended; the actor serves no more", self._actor_id)
        await server.set_serving(False)

    def _describe(self) -> admin_pb2.ActorInfo:
        stage, _ = self._running()
        assert self._tensor_service is not None
        weights = stage.weights()
        return admin_pb2.ActorInfo(
            actor_id=self._actor_id,
            stage=common_pb2.STAGE_ENCODER,
            endpoint=self._endpoint,
            host_id=host_id(),
            process_id=os.getpid(),
            model_fingerprint=stage.produced.model_fingerprint,
            dtype=dtype_to_proto(stage.produced.dtype),
            lanes=self._tensor_service.lanes,
            weights=admin_pb2.Weights(
                num_visual_parameters=weights.num_visual_parameters,
                num_language_parameters=weights.num_language_parameters,
                num_bytes=weights.num_bytes,
            ),
            encoder=stage.counters(),
            leases=stage.leases.counters().to_proto(),
            device_id=device_id(stage.device),
            state=admin_pb2.ACTOR_STATE_DRAINING if stage.is_draining else admin_pb2.ACTOR_STATE_READY,
        )

    def describe(self) -> admin_pb2.ActorInfo:
        """Itself, at this moment. Raises Unavailable before `start`."""
        return self._describe()

    def _running(self) -> tuple[EncoderStage, RpcServer]:
        if self._stage is None or self._server is None:
            raise Unavailable(f"{self._actor_id} was not started")
        return self._stage, self._server
