"""The follower actor: one process with one rank's part of a language model, which its leader tells what to do.

A plain class: the controller makes a Ray actor of it, beside the leader's in one placement group.
"""

from __future__ import annotations

import asyncio
import logging
import socket

import torch

from llm_service.collector import spare_the_collector
from llm_service.device_defaults import resolve_section
from llm_service.loading import Computation, LoadedModel, build_computation
from llm_service.parallel.collectives import TorchCollectives
from llm_service.parallel.follower import Follower
from llm_service.parallel.frames import Frame, FrameKind
from llm_service.parallel.rank_info import describe_rank
from llm_service.parallel.rendezvous import RendezvousAddress, join
from llm_service.parallel.step_reader import StepReader
from llm_service.role import Role
from triptych.config import DeploymentConfig, LanguageSection
from triptych.errors import Unavailable
from triptych.precision import resolve_device
from triptych.transport.host import new_incarnation_id

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 2.0


class FollowerActor:
    """Rank `rank` of an LLM actor of `stages.<role>.tensor_parallel` ranks. `start`, then `stop`.

    `host` is the address at which the other ranks reach this process. It serves nobody: requests go to the leader.
    """

    def __init__(self, config: DeploymentConfig, role: str, rank: int, host: str = "127.0.0.1") -> None:
        self._config = config
        self._section: LanguageSection = getattr(config.stages, Role(role))
        self._rank = rank
        self._host = host
        self._actor_id = new_incarnation_id(f"{role.replace('_', '-')}-rank-{rank}")
        self._stream: socket.socket | None = None
        self._follower: Follower | None = None

    async def start(self, rendezvous: str) -> None:
        """Joins the group that meets at `rendezvous`, loads this rank's part of the model, and follows.

        Raises ModelError, ConfigurationError, or Unavailable when the leader is gone; leaves nothing behind then.
        """
        torch.set_num_threads(self._section.num_threads)
        address = RendezvousAddress.from_text(rendezvous)
        try:
            await asyncio.to_thread(self._start, address)
        except BaseException:
            await self.stop()
            raise
        logger.info("%s follows %s", self._actor_id, address.host)

    async def stop(self) -> None:
        """Ends this rank; its leader notices. Idempotent."""
        if self._follower is not None:
            await asyncio.to_thread(self._follower.stop, _STOP_TIMEOUT_S)
        elif self._stream is not None:
            self._stream.close()

    async def ping(self) -> str:
        """The incarnation id. Raises Unavailable when this rank follows nobody."""
        if self._follower is None or not self._follower.is_alive:
            raise Unavailable(f"{self._actor_id} has ended")
        return self._actor_id

    def _start(self, address: RendezvousAddress) -> None:
        config, size, rank = self._config, self._section.tensor_parallel, self._rank
        timeout_s = config.control.start_timeout_s
        device = resolve_device(config.model)
        self._stream = stream = join(address, rank, size, timeout_s)
        collectives = TorchCollectives.connect(
            address.host, address.store_port, rank, size, device, timeout_s, own_host=self._host
        )
        model = LoadedModel.load(config.model, collectives)
        stream.sendall(Frame.of(FrameKind.LOADED, data=describe_rank(rank, model).SerializeToString()).pack())
        if device.type == "cuda":
            spare_the_collector()

        def build() -> Computation:
            return build_computation(model, resolve_section(self._section, device))

        reader = StepReader(config.defaults, config.limits)
        self._follower = Follower(stream, collectives, model.dtype, reader, build)
        self._follower.start()
