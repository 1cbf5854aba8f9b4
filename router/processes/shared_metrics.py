"""The page of metrics that every process shows: the numbers of all of them, added."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from router.processes.sockets import address
from triptych.rpc.channels import ChannelPool
from triptych.v1 import router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
# When a series began: the earliest of all processes.
_CREATED = "_created"

Page = Callable[[], Awaitable[bytes]]


class MetricsService(router_pb2_grpc.MetricsServiceServicer):  # type: ignore[misc]
    """Gives the page of this process alone to the others."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def GetMetrics(
        self, request: router_pb2.GetMetricsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> router_pb2.GetMetricsResponse:
        return router_pb2.GetMetricsResponse(page=await self._page())


class SharedMetrics:
    """Asks all processes, this one as well. One that does not answer is left out: counters go back when a process was
    replaced, which Prometheus takes for a restart."""

    def __init__(self, folder: Path, num_processes: int, channels: ChannelPool) -> None:
        self._addresses = [address(folder, number) for number in range(num_processes)]
        self._channels = channels

    async def page(self) -> bytes:
        """Of all processes together, in Prometheus' text format."""
        pages = await asyncio.gather(*(self._page_of(socket) for socket in self._addresses))
        return add_pages(page for page in pages if page)

    async def _page_of(self, socket: str) -> str:
        stub = router_pb2_grpc.MetricsServiceStub(self._channels.get(socket))
        try:
            response = await stub.GetMetrics(router_pb2.GetMetricsRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            logger.warning("no metrics of the router process at %s: %s", socket, error.details())
            return ""
        return str(response.page.decode())


def add_pages(pages: Iterable[str]) -> bytes:
    """One page whose every value is the sum over those of the same name and labels."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            sums = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.items()))
                if key not in sums:
                    sums[key] = sample.value
                elif sample.name.endswith(_CREATED):
                    sums[key] = min(sums[key], sample.value)
                else:
                    sums[key] += sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Fixed(families.values()))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
