"""Lanes by name. Adding one is a file with its two ends and an entry here; `transport.lanes` picks and orders them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch

from triptych.config import TransportSection
from triptych.errors import ConfigurationError
from triptych.rpc.channels import ChannelPool
from triptych.transport.cuda_ipc.driver import LibCuda, load_driver
from triptych.transport.cuda_ipc.lane import CudaIpcConsumerLane, CudaIpcProducerLane
from triptych.transport.cuda_ipc.slab import CudaSlab
from triptych.transport.device_id import device_id, visible_devices
from triptych.transport.grpc import GrpcConsumerLane, GrpcProducerLane
from triptych.transport.host import SHARED_MEMORY_FOLDER
from triptych.transport.lanes import ConsumerLane, ProducerLane
from triptych.transport.links.gloo import GlooBackend
from triptych.transport.links.lane import LinkConsumerLane, LinkProducerLane, NcclConsumerLane
from triptych.transport.links.nccl import NcclBackend, has_nccl
from triptych.transport.links.settings import LinkSettings
from triptych.transport.shared_memory import sweep_dead_slabs
from triptych.transport.shm import ShmConsumerLane, ShmProducerLane

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProducerSide:
    """What the producer's end of a lane may be made of. `device`: where the tensors are made."""

    producer_id: str
    transport: TransportSection
    device: torch.device


@dataclass(frozen=True)
class ConsumerSide:
    """What the consumer's end of a lane may be made of. `device`: where the tensors are needed."""

    consumer_id: str
    host_id: str
    transport: TransportSection
    channels: ChannelPool
    device: torch.device


@dataclass(frozen=True)
class LaneKind:
    """Makers of both ends; they answer None where this machine or its configuration can't serve the lane."""

    make_consumer: Callable[[ConsumerSide], ConsumerLane | None]
    make_producer: Callable[[ProducerSide], ProducerLane | None]


def make_producer_lanes(side: ProducerSide) -> dict[str, ProducerLane]:
    """The lanes that a producer serves, best first. Raises ConfigurationError for a name that is no lane."""
    lanes = {name: _kind(name).make_producer(side) for name in side.transport.lanes}
    return {name: lane for name, lane in lanes.items() if lane is not None}


def make_consumer_lanes(side: ConsumerSide) -> list[ConsumerLane]:
    """The lanes that a consumer may use, best first. Raises ConfigurationError for a name that is no lane."""
    lanes = [_kind(name).make_consumer(side) for name in side.transport.lanes]
    return [lane for lane in lanes if lane is not None]


def _kind(name: str) -> LaneKind:
    if name not in LANES:
        raise ConfigurationError(
            f"transport.lanes: no lane {name!r}; there are {', '.join(LANES)}", field="transport.lanes"
        )
    return LANES[name]


def _make_shm_producer(side: ProducerSide) -> ShmProducerLane | None:
    if side.transport.shared_memory_bytes == 0 or not SHARED_MEMORY_FOLDER.is_dir():
        return None
    for name in sweep_dead_slabs():
        logger.info("removed shared memory %s of a dead actor", name)
    return ShmProducerLane(
        side.producer_id, side.transport.shared_memory_bytes, has_checksums=side.transport.memory_checksums
    )


def _make_cuda_ipc_producer(side: ProducerSide) -> CudaIpcProducerLane | None:
    num_bytes = side.transport.cuda_slab_bytes
    driver = _load_driver(side.device) if num_bytes > 0 else None
    if driver is None:
        return None
    make_slab = partial(CudaSlab, side.producer_id, num_bytes, driver)
    has_checksums = side.transport.memory_checksums
    return CudaIpcProducerLane(make_slab, side.device, device_id(side.device), has_checksums=has_checksums)


def _make_cuda_ipc_consumer(side: ConsumerSide) -> CudaIpcConsumerLane | None:
    driver = _load_driver(side.device)
    if driver is None:
        return None
    return CudaIpcConsumerLane(
        side.channels,
        side.consumer_id,
        side.host_id,
        driver,
        side.device,
        visible_devices(),
        side.transport.link_idle_s,
    )


def _load_driver(device: torch.device) -> LibCuda | None:
    return load_driver(device.index or 0) if device.type == "cuda" else None


def _gloo_settings(transport: TransportSection) -> LinkSettings:
    return LinkSettings(
        lane="gloo",
        device=torch.device("cpu"),
        make_backend=GlooBackend,
        timeout_s=transport.link_timeout_s,
        idle_s=transport.link_idle_s,
        max_links=transport.max_links,
        num_slots=transport.link_slots,
        has_checksums=True,
    )


def _nccl_settings(transport: TransportSection, device: torch.device) -> LinkSettings:
    return LinkSettings(
        lane="nccl",
        device=device,
        make_backend=partial(NcclBackend, device=device, max_ctas=transport.nccl_max_ctas),
        timeout_s=transport.link_timeout_s,
        idle_s=transport.link_idle_s,
        max_links=transport.max_links,
        num_slots=transport.link_slots,
        has_checksums=transport.memory_checksums,
    )


def _make_nccl_producer(side: ProducerSide) -> LinkProducerLane | None:
    if not has_nccl(side.device):
        return None
    return LinkProducerLane(side.producer_id, _nccl_settings(side.transport, side.device))


def _make_nccl_consumer(side: ConsumerSide) -> NcclConsumerLane | None:
    if not has_nccl(side.device):
        return None
    settings = _nccl_settings(side.transport, side.device)
    return NcclConsumerLane(side.consumer_id, side.channels, settings, device_id(side.device))


LANES = MappingProxyType(
    {
        "cuda_ipc": LaneKind(_make_cuda_ipc_consumer, _make_cuda_ipc_producer),
        "nccl": LaneKind(_make_nccl_consumer, _make_nccl_producer),
        "shm": LaneKind(
            lambda side: ShmConsumerLane(side.channels, side.consumer_id, side.host_id),
            _make_shm_producer,
        ),
        "gloo": LaneKind(
            lambda side: LinkConsumerLane(side.consumer_id, side.channels, _gloo_settings(side.transport)),
            lambda side: LinkProducerLane(side.producer_id, _gloo_settings(side.transport)),
        ),
        "grpc": LaneKind(
            lambda side: GrpcConsumerLane(side.channels, side.consumer_id),
            lambda side: GrpcProducerLane(side.transport.chunk_bytes),
        ),
    }
)
