"""Peers killed or stopped before, in and after a transfer, over every lane: one retry, in time, and nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from faulty_actors import FINGERPRINT, MESSAGE_BYTES, TENSOR, Fault, context, fetch, serve

from triptych.config import TransportSection
from triptych.errors import DeadlineExceeded, TriptychError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import host_id, new_incarnation_id
from triptych.transport.shared_memory import sweep_dead_slabs
from triptych.transport.ticket import Ticket, new_id
from triptych.v1 import tensor_pb2, tensor_pb2_grpc

LANES = ["shm", "gloo", "grpc"]
# Far beyond what anything here takes: an error comes because something was noticed, not because time ran out.
PATIENCE_S = 30.0


@dataclass
class Producer:
    """A process that serves TENSOR."""

    process: Any
    connection: Connection
    producer_id: str = ""
    endpoint: str = ""

    @classmethod
    async def start(cls, transport: TransportSection, fault: Fault) -> Producer:
        ours, theirs = context().Pipe()
        process = context().Process(target=serve, args=(theirs, transport, fault), daemon=True)
        await asyncio.to_thread(process.start)
        theirs.close()
        producer_id, port = await asyncio.to_thread(ours.recv)
        return cls(process, ours, producer_id, f"127.0.0.1:{port}")

    async def ask(self, wish: str) -> Any:
        self.connection.send(wish)
        return await asyncio.to_thread(self.connection.recv)

    async def ticket(self, *lanes: str) -> Ticket:
        ticket_id = new_id()
        await self.ask(ticket_id)
        return Ticket(
            ticket_id=ticket_id,
            producer_id=self.producer_id,
            producer_endpoint=self.endpoint,
            producer_host_id=host_id(),
            model_fingerprint=FINGERPRINT,
            dtype=TENSOR.dtype,
            shape=tuple(TENSOR.shape),
            lanes=lanes,
        )

    async def wait_nothing_held(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while any((held := await self.ask("counts")).values()):
            assert time.monotonic() < deadline, f"still held: {held}"
            await asyncio.sleep(0.02)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@dataclass
class Consumer:
    """A fetcher of this process."""

    fetcher: TensorFetcher
    channels: ChannelPool


@dataclass
class Actors:
    producers: list[Producer] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)

    async def produce(self, transport: TransportSection, fault: Fault | None = None) -> Producer:
        self.producers.append(await Producer.start(transport, fault or Fault()))
        return self.producers[-1]

    def consume(self, transport: TransportSection) -> TensorFetcher:
        channels = ChannelPool(MESSAGE_BYTES)
        fetcher = TensorFetcher(channels, new_incarnation_id("prefill"), host_id(), transport, FINGERPRINT)
        self.consumers.append(Consumer(fetcher, channels))
        return fetcher


@pytest.fixture
async def actors() -> AsyncIterator[Actors]:
    made = Actors()
    yield made
    for consumer in made.consumers:
        await consumer.fetcher.close()
        await consumer.channels.close()
    for producer in made.producers:
        producer.end()
    sweep_dead_slabs()
    await until(lambda: not left_tasks(), "tasks")


def left_tasks() -> list[str]:
    names = ("link ", "open link ", "LeaseKeeper")
    return [repr(task) for task in asyncio.all_tasks() if any(name in repr(task) for name in names)]


async def until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def transport(*lanes: str, **changes: Any) -> TransportSection:
    return TransportSection(lanes=lanes, shared_memory_bytes=1 << 25, **{"lease_s": 5.0, **changes})


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("moment", ["before", "during", "after"])
async def test_a_producer_killed(actors: Actors, lane: str, moment: str) -> None:
    settings = transport(lane, "grpc")
    victim = await actors.produce(settings, Fault(moment, signal.SIGKILL))
    other = await actors.produce(settings)
    fetcher = actors.consume(settings)
    ticket, again = await victim.ticket(lane), await victim.ticket(lane)
    start_s = time.monotonic()
    if moment == "after":
        fetched = await fetcher.fetch(ticket, timeout_s=PATIENCE_S)
        assert fetched.lane == lane and torch.equal(fetched.tensor, TENSOR)
        await asyncio.to_thread(victim.process.join)
    else:
        with pytest.raises(Unavailable):
            await fetcher.fetch(ticket, timeout_s=PATIENCE_S)
    with pytest.raises(Unavailable):
        await fetcher.fetch(again, timeout_s=PATIENCE_S)
    # The one retry, elsewhere.
    fetched = await fetcher.fetch(await other.ticket(lane), timeout_s=PATIENCE_S)
    assert fetched.lane == lane and torch.equal(fetched.tensor, TENSOR)
    assert time.monotonic() - start_s < PATIENCE_S
    del fetched  # On the lane shm it may lie with its producer.
    await other.wait_nothing_held()


@pytest.mark.parametrize("lane", LANES)
async def test_a_producer_stopped_past_the_deadline_and_continued(actors: Actors, lane: str) -> None:
    settings = transport(lane, link_timeout_s=0.6, lane_retry_s=0.1)
    producer = await actors.produce(settings, Fault("during", signal.SIGSTOP))
    fetcher = actors.consume(settings)
    ticket = await producer.ticket(lane)
    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded if lane != "gloo" else Unavailable):
        await fetcher.fetch(ticket, timeout_s=1.5)
    assert time.monotonic() - start_s < PATIENCE_S
    os.kill(producer.process.pid, signal.SIGCONT)
    fetched = await fetch_when_back(fetcher, producer, lane)
    assert fetched.lane == lane and torch.equal(fetched.tensor, TENSOR)
    del fetched
    await producer.wait_nothing_held()


async def fetch_when_back(fetcher: TensorFetcher, producer: Producer, lane: str) -> Any:
    """A link can be refused once more: the producer closes the old one only now."""
    for _ in range(20):
        try:
            return await fetcher.fetch(await producer.ticket(lane), timeout_s=PATIENCE_S)
        except TriptychError:
            await asyncio.sleep(0.1)
    raise AssertionError("the producer does not serve again")


@pytest.mark.parametrize("what", ["killed", "stopped"])
async def test_a_consumer_that_falls_silent_in_a_transfer_holds_nothing(actors: Actors, what: str) -> None:
    """And the others go on meanwhile."""
    settings = transport("gloo", link_timeout_s=1.0, lease_s=2.0)
    producer = await actors.produce(settings)
    number = signal.SIGKILL if what == "killed" else signal.SIGSTOP
    ticket = await producer.ticket("gloo")
    process = context().Process(target=fetch, args=(ticket, settings, number), daemon=True)
    await asyncio.to_thread(process.start)
    try:
        if what == "killed":
            await asyncio.to_thread(process.join, PATIENCE_S)
            assert process.exitcode == -signal.SIGKILL
        else:
            await until(lambda: process_state(process.pid) == "T", "the consumer stops")
        fetcher = actors.consume(settings)
        fetched = await fetcher.fetch(await producer.ticket("gloo"), timeout_s=PATIENCE_S)
        assert torch.equal(fetched.tensor, TENSOR)
        await producer.wait_nothing_held()
    finally:
        process.kill()
        process.join()


def process_state(process_id: int) -> str:
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_consumer_that_never_acknowledges(actors: Actors) -> None:
    """It takes everything and says nothing: what it leaves is freed when the lease has run out."""
    settings = transport("shm", "gloo", "grpc", lease_s=0.5)
    producer = await actors.produce(settings)
    channels = ChannelPool(MESSAGE_BYTES)
    stub = tensor_pb2_grpc.TensorServiceStub(channels.get(producer.endpoint))
    for lane in settings.lanes:
        ticket = await producer.ticket(lane)
        request = tensor_pb2.FetchRequest(
            ticket_id=ticket.ticket_id, producer_id=ticket.producer_id, consumer_id="mute", lane=lane
        )
        call = stub.Fetch(request, timeout=0.5)
        assert (await call.read()).HasField("header")
        assert (await producer.ask("counts"))["pinned"] >= 1
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
    await producer.wait_nothing_held()
    await channels.close()
