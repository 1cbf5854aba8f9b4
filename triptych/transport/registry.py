"""Lanes by name. Adding one is a file with its two ends and an entry here; `transport.lanes` picks and orders them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from triptych.config import TransportSection
from triptych.errors import ConfigurationError
from triptych.rpc.channels import ChannelPool
from triptych.transport.grpc import GrpcConsumerLane, GrpcProducerLane
from triptych.transport.lanes import ConsumerLane, ProducerLane
from triptych.transport.local import LocalConsumerLane, LocalProducers
from triptych.transport.shared_memory import SharedMemorySlab, sweep_dead_slabs
from triptych.transport.shm import ShmConsumerLane, ShmProducerLane

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProducerSide:
    """What the producer's end of a lane may be made of."""

    producer_id: str
    transport: TransportSection


@dataclass(frozen=True)
class ConsumerSide:
    """What the consumer's end of a lane may be made of."""

    consumer_id: str
    host_id: str
    transport: TransportSection
    channels: ChannelPool
    local_producers: LocalProducers


@dataclass(frozen=True)
class LaneKind:
    """Makers of both ends. `make_producer` answers None where this machine or its configuration can't serve the lane;
    it is absent for a lane that needs no end inside Fetch."""

    make_consumer: Callable[[ConsumerSide], ConsumerLane]
    make_producer: Callable[[ProducerSide], ProducerLane | None] | None


def make_producer_lanes(side: ProducerSide) -> dict[str, ProducerLane | None]:
    """The lanes that a producer serves, best first; None for those that need no end inside Fetch.

    Raises ConfigurationError for a name that is no lane.
    """
    lanes: dict[str, ProducerLane | None] = {}
    for name in side.transport.lanes:
        make = _kind(name).make_producer
        lane = make(side) if make else None
        if lane is not None or make is None:
            lanes[name] = lane
    return lanes


def make_consumer_lanes(side: ConsumerSide) -> list[ConsumerLane]:
    """The lanes that a consumer may use, best first. Raises ConfigurationError for a name that is no lane."""
    return [_kind(name).make_consumer(side) for name in side.transport.lanes]


def _kind(name: str) -> LaneKind:
    if name not in LANES:
        raise ConfigurationError(
            f"transport.lanes: no lane {name!r}; there are {', '.join(LANES)}", field="transport.lanes"
        )
    return LANES[name]


def _make_shm_producer(side: ProducerSide) -> ShmProducerLane | None:
    if side.transport.shared_memory_bytes == 0:
        return None
    try:
        for name in sweep_dead_slabs():
            logger.info("removed shared memory %s of a dead actor", name)
        slab = SharedMemorySlab(side.producer_id, side.transport.shared_memory_bytes)
    except OSError as error:
        logger.warning("lane shm is off: no shared memory for %s: %s", side.producer_id, error)
        return None
    return ShmProducerLane(slab)


LANES = MappingProxyType(
    {
        "local": LaneKind(lambda side: LocalConsumerLane(side.local_producers), None),
        "shm": LaneKind(
            lambda side: ShmConsumerLane(side.channels, side.consumer_id, side.host_id),
            _make_shm_producer,
        ),
        "grpc": LaneKind(
            lambda side: GrpcConsumerLane(side.channels, side.consumer_id),
            lambda side: GrpcProducerLane(side.transport.chunk_bytes),
        ),
    }
)
