"""What a dead, stopped or faulty peer may cost, for whatever lane and device: one retry, in time, and nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from faulty_actors import (
    ARRIVED,
    FINGERPRINT,
    MESSAGE_BYTES,
    NEGATIVE,
    REFUSED,
    TENSOR,
    Fault,
    context,
    fetch,
    serve,
)

from triptych.config import TransportSection
from triptych.errors import DeadlineExceeded, TriptychError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.transport.fetcher import FetchedTensor, TensorFetcher
from triptych.transport.host import host_id, new_incarnation_id
from triptych.transport.shared_memory import sweep_dead_slabs
from triptych.transport.ticket import Ticket, new_id
from triptych.v1 import tensor_pb2, tensor_pb2_grpc

# Far beyond what anything here takes: an error comes because something was noticed, not because time ran out.
PATIENCE_S = 30.0
NUM_FETCHES = 30


@dataclass
class Producer:
    """A process that serves TENSOR."""

    process: Any
    connection: Connection
    producer_id: str
    endpoint: str
    device_id: str

    @classmethod
    async def start(cls, transport: TransportSection, fault: Fault, device: str) -> Producer:
        ours, theirs = context().Pipe()
        process = context().Process(target=serve, args=(theirs, transport, fault, device), daemon=True)
        await asyncio.to_thread(process.start)
        theirs.close()
        producer_id, port, device_id = await asyncio.to_thread(ours.recv)
        return cls(process, ours, producer_id, f"127.0.0.1:{port}", device_id)

    async def ask(self, wish: str) -> Any:
        self.connection.send(wish)
        return await asyncio.to_thread(self.connection.recv)

    async def ticket(self, *lanes: str, is_negative: bool = False) -> Ticket:
        """Of TENSOR, or its negative; granted already."""
        ticket_id = new_id()
        await self.ask(f"{NEGATIVE}{ticket_id}" if is_negative else ticket_id)
        return Ticket(
            ticket_id=ticket_id,
            producer_id=self.producer_id,
            producer_endpoint=self.endpoint,
            producer_host_id=host_id(),
            model_fingerprint=FINGERPRINT,
            dtype=TENSOR.dtype,
            shape=tuple(TENSOR.shape),
            lanes=lanes,
            device_id=self.device_id,
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
    """Of one test, all on `device`; what it leaves behind is an error."""

    device: str = "cpu"
    producers: list[Producer] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)

    async def produce(self, transport: TransportSection, fault: Fault | None = None) -> Producer:
        self.producers.append(await Producer.start(transport, fault or Fault(), self.device))
        return self.producers[-1]

    def consume(self, transport: TransportSection) -> TensorFetcher:
        channels = ChannelPool(MESSAGE_BYTES)
        device = torch.device(self.device)
        fetcher = TensorFetcher(channels, new_incarnation_id("prefill"), host_id(), transport, FINGERPRINT, device)
        self.consumers.append(Consumer(fetcher, channels))
        return fetcher

    async def __aenter__(self) -> Actors:
        return self

    async def __aexit__(self, *error: object) -> None:
        for consumer in self.consumers:
            await consumer.fetcher.close()
            await consumer.channels.close()
        for producer in self.producers:
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
    values = {"lease_s": 5.0, "shared_memory_bytes": 1 << 25, "cuda_slab_bytes": 1 << 26, **changes}
    return TransportSection.model_validate({"lanes": lanes, **values})


def check(fetched: FetchedTensor, lane: str, expected: torch.Tensor = TENSOR) -> None:
    assert fetched.lane == lane and torch.equal(fetched.tensor.cpu(), expected)


async def kill_producer(actors: Actors, lane: str, moment: str) -> None:
    """It costs the fetches that it had promised; the next one, elsewhere, is right."""
    settings = transport(lane, "grpc")
    victim = await actors.produce(settings, Fault(moment, signal.SIGKILL))
    other = await actors.produce(settings)
    fetcher = actors.consume(settings)
    ticket, again = await victim.ticket(lane), await victim.ticket(lane)
    start_s = time.monotonic()
    if moment == "after":
        check(await fetcher.fetch(ticket, timeout_s=PATIENCE_S), lane)
        await asyncio.to_thread(victim.process.join)
    else:
        with pytest.raises(Unavailable):
            await fetcher.fetch(ticket, timeout_s=PATIENCE_S)
    with pytest.raises(Unavailable):
        await fetcher.fetch(again, timeout_s=PATIENCE_S)
    check(await fetcher.fetch(await other.ticket(lane), timeout_s=PATIENCE_S), lane)
    assert time.monotonic() - start_s < PATIENCE_S
    # What was fetched on the lane shm lies with its producer until it is dropped: `check` kept nothing.
    await other.wait_nothing_held()


async def stop_producer(actors: Actors, lane: str) -> None:
    """In the middle of a transfer, past its deadline; when it goes on it serves again."""
    settings = transport(lane, link_timeout_s=0.6, lane_retry_s=0.1)
    producer = await actors.produce(settings, Fault("during", signal.SIGSTOP))
    fetcher = actors.consume(settings)
    ticket = await producer.ticket(lane)
    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded if lane != "gloo" else Unavailable):
        await fetcher.fetch(ticket, timeout_s=1.5)
    assert time.monotonic() - start_s < PATIENCE_S
    os.kill(producer.process.pid, signal.SIGCONT)
    check(await fetch_when_back(fetcher, producer, lane), lane)
    await producer.wait_nothing_held()


async def fetch_when_back(fetcher: TensorFetcher, producer: Producer, lane: str) -> FetchedTensor:
    """A link can be refused once more: the producer closes the old one only now."""
    for _ in range(20):
        try:
            return await fetcher.fetch(await producer.ticket(lane), timeout_s=PATIENCE_S)
        except TriptychError:
            await asyncio.sleep(0.1)
    raise AssertionError("the producer does not serve again")


async def silence_consumer(actors: Actors, lane: str, what: str) -> None:
    """ "killed" or "stopped" in the middle of a transfer it holds nothing, and the others go on meanwhile. One that
    goes on after its deadline finds that it has lost: what lies there by then is not its tensor."""
    settings = transport(lane, link_timeout_s=1.0, lease_s=2.0)
    producer = await actors.produce(settings)
    number = signal.SIGKILL if what == "killed" else signal.SIGSTOP
    arguments = (await producer.ticket(lane), settings, number, 3.0, actors.device)
    process = context().Process(target=fetch, args=arguments, daemon=True)
    await asyncio.to_thread(process.start)
    try:
        if what == "killed":
            await asyncio.to_thread(process.join, PATIENCE_S)
            assert process.exitcode == -signal.SIGKILL
        else:
            await until(lambda: process_state(process.pid) == "T", "the consumer stops")
        fetcher = actors.consume(settings)
        check(await fetcher.fetch(await producer.ticket(lane), timeout_s=PATIENCE_S), lane)
        await producer.wait_nothing_held()
        ticket = await producer.ticket(lane, is_negative=True)
        check(await fetcher.fetch(ticket, timeout_s=PATIENCE_S), lane, -TENSOR)
        if what == "stopped":
            os.kill(process.pid, signal.SIGCONT)
            await asyncio.to_thread(process.join, PATIENCE_S)
            assert process.exitcode == REFUSED
        await producer.wait_nothing_held()
    finally:
        process.kill()
        process.join()


async def stop_and_continue_consumer(actors: Actors, lane: str) -> None:
    """Stopped in the middle of a transfer, and continued in time: nobody has noticed."""
    settings = transport(lane)
    producer = await actors.produce(settings)
    arguments = (await producer.ticket(lane), settings, signal.SIGSTOP, PATIENCE_S, actors.device)
    process = context().Process(target=fetch, args=arguments, daemon=True)
    await asyncio.to_thread(process.start)
    try:
        await until(lambda: process_state(process.pid) == "T", "the consumer stops")
        os.kill(process.pid, signal.SIGCONT)
        await asyncio.to_thread(process.join, PATIENCE_S)
        assert process.exitcode == ARRIVED
        await producer.wait_nothing_held()
    finally:
        process.kill()
        process.join()


def process_state(process_id: int) -> str:
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


async def never_acknowledge(actors: Actors, *lanes: str) -> None:
    """A consumer takes everything and says nothing: what it leaves is freed when the lease has run out."""
    settings = transport(*lanes, lease_s=0.5)
    producer = await actors.produce(settings)
    channels = ChannelPool(MESSAGE_BYTES)
    stub = tensor_pb2_grpc.TensorServiceStub(channels.get(producer.endpoint))
    for lane in lanes:
        ticket = await producer.ticket(lane)
        request = tensor_pb2.FetchRequest(
            ticket_id=ticket.ticket_id, producer_id=ticket.producer_id, consumer_id="mute", lane=lane
        )
        # The first on a GPU waits for the slab.
        call = stub.Fetch(request, timeout=2.0 if lane == "cuda_ipc" else 0.5)
        assert (await call.read()).HasField("header")
        assert (await producer.ask("counts"))["pinned"] >= 1
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
    await producer.wait_nothing_held()
    await channels.close()


async def turn_lane_off(actors: Actors, lane: str, next_lane: str) -> None:
    """In the middle of a run: every fetch arrives, over the next lane from then on."""
    # Room for all of them at once, should nobody have let go of any.
    settings = transport(lane, next_lane, shared_memory_bytes=1 << 29)
    producer = await actors.produce(settings)
    fetcher = actors.consume(settings)

    async def fetch_one(number: int) -> str:
        is_negative = number % 2 == 1
        ticket = await producer.ticket(lane, next_lane, is_negative=is_negative)
        fetched = await fetcher.fetch(ticket, timeout_s=PATIENCE_S)
        assert torch.equal(fetched.tensor.cpu(), -TENSOR if is_negative else TENSOR)
        return fetched.lane

    taken = [await fetch_one(number) for number in range(3)]
    # Tickets are granted one after the other, for the producer answers so; the fetches go on beside that.
    fetches = []
    for number in range(NUM_FETCHES):
        ticket = await producer.ticket(lane, next_lane, is_negative=number % 2 == 1)
        fetches.append(asyncio.create_task(fetcher.fetch(ticket, timeout_s=PATIENCE_S)))
        if number == NUM_FETCHES // 2:
            await producer.ask(f"off {lane}")
    for number, fetched in enumerate(await asyncio.gather(*fetches)):
        assert torch.equal(fetched.tensor.cpu(), -TENSOR if number % 2 else TENSOR)
        taken.append(fetched.lane)
    del fetched, fetches
    taken += [await fetch_one(number) for number in range(2)]
    assert taken[:3] == [lane] * 3 and taken[-2:] == [next_lane] * 2 and set(taken) == {lane, next_lane}
    counters = {each.lane: each for each in fetcher.lane_counters()}
    assert counters[lane].num_failures >= 1 and counters[next_lane].num_failures == 0
    await producer.wait_nothing_held()
