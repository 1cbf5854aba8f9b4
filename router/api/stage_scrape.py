"""StageScrape: asks all actors for their figures when somebody scrapes the router's metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import grpc

from router.api.scaler import Scaler
from router.control.membership import Member, Membership
from triptych.config.telemetry import TelemetrySection
from triptych.errors import Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.telemetry.actor_metrics import ActorMetrics
from triptych.v1 import admin_pb2, admin_pb2_grpc

logger = logging.getLogger(__name__)


class StageScrape:
    """Keeps `metrics` no older than telemetry.scrape_cache_s, however often it is asked. Lives on one event loop."""

    def __init__(
        self,
        section: TelemetrySection,
        metrics: ActorMetrics,
        membership: Membership,
        channels: ChannelPool,
        scaler: Scaler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._section = section
        self._metrics = metrics
        self._membership = membership
        self._channels = channels
        self._scaler = scaler
        self._clock = clock
        self._fresh_until_s = 0.0
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Asks every actor at once; who has not answered within telemetry.scrape_timeout_s is left out."""
        async with self._lock:
            if self._clock() < self._fresh_until_s:
                return
            answers = await asyncio.gather(*map(self._ask, self._membership.all_members()))
            self._metrics.update([info for info in answers if info is not None], self._scaler.topology())
            self._fresh_until_s = self._clock() + self._section.scrape_cache_s

    async def _ask(self, member: Member) -> admin_pb2.ActorInfo | None:
        try:
            stub = admin_pb2_grpc.AdminServiceStub(self._channels.get(member.endpoint))
            response = await stub.GetActorInfo(admin_pb2.GetActorInfoRequest(), timeout=self._section.scrape_timeout_s)
        except (grpc.aio.AioRpcError, Unavailable) as error:
            logger.debug("%s did not say its figures: %s", member.actor_id, error)
            return None
        info: admin_pb2.ActorInfo = response.info
        return info
