"""Waiting, cancelling, dying: nobody hangs, and nothing stays held."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transport_pair import FINGERPRINT, MIB, TRANSPORT

from triptych.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestTooLarge,
    TriptychError,
    Unavailable,
)
from triptych.rpc.channels import ChannelPool
from triptych.rpc.status import rpc_errors
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import SHARED_MEMORY_FOLDER, host_id, new_incarnation_id
from triptych.transport.shared_memory import sweep_dead_slabs
from triptych.transport.ticket import Ticket, new_id
from triptych.v1 import tensor_pb2, tensor_pb2_grpc

LANES = ["shm", "gloo", "grpc"]
TENSOR = torch.randn(100, 100)


@pytest.mark.parametrize("lane", LANES)
async def test_fetch_before_expect_before_grant(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    ticket = pair.ticket(TENSOR)
    fetch = asyncio.create_task(pair.fetcher.fetch(ticket, timeout_s=5))
    await asyncio.sleep(0.05)
    pair.leases.expect(ticket.ticket_id)
    await asyncio.sleep(0.05)
    assert not fetch.done() and pair.leases.counters().pending == 1
    pair.leases.grant(ticket.ticket_id, TENSOR)
    fetched = await fetch
    assert torch.equal(fetched.tensor, TENSOR) and fetched.wait_s > 0.08
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("when", ["before", "while waiting"])
async def test_a_failure_keeps_class_message_and_field(make_pair: Any, lane: str, when: str) -> None:
    pair = await make_pair(lanes=(lane,))
    errors: list[TriptychError] = [
        RequestTooLarge("image of 9 pixels, at most 4", field="messages[0].parts[1].image"),
        Overloaded("encoder is full", field="stages.encoder.max_pending_patches", retry_after_s=3.0),
        InvalidRequest("not a JPEG", field="image"),
    ]
    for error in errors:
        ticket = pair.ticket(TENSOR)
        if when == "before":
            pair.leases.fail(ticket.ticket_id, error)
        fetch = asyncio.create_task(pair.fetcher.fetch(ticket, timeout_s=5))
        await asyncio.sleep(0.02)
        if when == "while waiting":
            pair.leases.fail(ticket.ticket_id, error)
        with pytest.raises(type(error)) as caught:
            await fetch
        assert type(caught.value) is type(error)
        assert (caught.value.message, caught.value.field) == (error.message, error.field)
        if isinstance(error, Overloaded):
            assert caught.value.retry_after_s == 3.0
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
async def test_a_cancelled_consumer_leaves_nothing(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    released: list[str] = []
    for announce in (False, True):
        ticket = pair.ticket(TENSOR)
        if announce:
            pair.leases.expect(ticket.ticket_id)
        fetch = asyncio.create_task(pair.fetcher.fetch(ticket, timeout_s=30))
        await asyncio.sleep(0.05)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        await pair.settle()
        # The producer finishes its work afterwards: what it grants goes at once.
        pair.leases.grant(ticket.ticket_id, TENSOR, on_release=lambda: released.append("late"))
    assert released == ["late", "late"]
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
async def test_cancelled_at_any_moment_of_a_transfer(make_pair: Any, lane: str) -> None:
    """Cancel at growing delays, from before the call is sent to after the tensor is here."""
    pair = await make_pair(lanes=(lane,))
    tensor = torch.randn(1_500, 1_000)
    released: list[int] = []
    for attempt in range(16):
        ticket = pair.ticket(tensor)
        pair.leases.grant(ticket.ticket_id, tensor, on_release=lambda: released.append(1))
        fetch = asyncio.create_task(pair.fetcher.fetch(ticket, timeout_s=5))
        await asyncio.sleep(attempt * 0.0015)
        fetch.cancel()
        with suppress(asyncio.CancelledError):
            await fetch
    del fetch  # And with it the tensor that came after all.
    await pair.settle()
    assert len(released) == 16
    if lane == "shm":
        slab = pair.service._lanes["shm"]._slab
        assert slab.free_bytes == slab.num_bytes


@pytest.mark.parametrize("lane", LANES)
async def test_deadline_while_waiting(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    ticket = pair.ticket(TENSOR)
    pair.leases.expect(ticket.ticket_id)
    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=ticket.ticket_id):
        await pair.fetcher.fetch(ticket, timeout_s=0.2)
    assert time.monotonic() - start_s < 1
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
async def test_a_ticket_the_producer_never_hears_of_is_not_found(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,), unknown_ticket_wait_s=0.1)
    with pytest.raises(NotFound, match=r"transport\.unknown_ticket_wait_s"):
        await pair.fetcher.fetch(pair.ticket(TENSOR), timeout_s=5)
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
async def test_heartbeats_keep_a_waited_for_ticket_alive(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,), lease_s=0.3)
    waited_for, forgotten = pair.ticket(TENSOR), pair.ticket(TENSOR)
    for ticket in (waited_for, forgotten):
        pair.leases.expect(ticket.ticket_id)
    fetch = asyncio.create_task(pair.fetcher.fetch(waited_for, timeout_s=5))
    for _ in range(12):
        await asyncio.sleep(0.05)
        pair.leases.sweep()
    assert pair.leases.counters().pending == 1
    pair.leases.grant(waited_for.ticket_id, TENSOR)
    assert torch.equal((await fetch).tensor, TENSOR)
    await pair.settle()


async def test_a_released_ticket_is_not_found_at_once(make_pair: Any) -> None:
    pair = await make_pair()
    ticket = pair.ticket(TENSOR)
    pair.leases.grant(ticket.ticket_id, TENSOR)
    await pair.fetcher.fetch(ticket, timeout_s=5)
    await pair.settle()
    start_s = time.monotonic()
    with pytest.raises(NotFound, match="was released"):
        await pair.fetcher.fetch(ticket, timeout_s=5)
    assert time.monotonic() - start_s < 1


@pytest.mark.parametrize("lane", ["shm", "grpc"])
async def test_a_producer_that_stops_is_unavailable(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    ticket = pair.ticket(TENSOR)
    pair.leases.expect(ticket.ticket_id)
    fetch = asyncio.create_task(pair.fetcher.fetch(ticket, timeout_s=30))
    await asyncio.sleep(0.05)
    pair.leases.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await fetch
    await pair.server.stop(0)
    with pytest.raises(Unavailable, match=pair.endpoint):
        await pair.fetcher.fetch(ticket, timeout_s=30)


async def test_closing_the_channels_under_a_fetch_is_unavailable(make_pair: Any) -> None:
    pair = await make_pair()
    ticket = pair.ticket(TENSOR)
    fetch = asyncio.create_task(pair.fetcher.fetch(ticket, timeout_s=30))
    await asyncio.sleep(0.05)
    await pair.channels.drop(pair.endpoint)
    with pytest.raises(Unavailable, match="closed under the call"):
        await fetch


@dataclass
class KillableProducer:
    process: asyncio.subprocess.Process
    producer_id: str
    endpoint: str

    def ticket(self, ticket_id: str, *lanes: str) -> Ticket:
        return Ticket(
            ticket_id=ticket_id,
            producer_id=self.producer_id,
            producer_endpoint=self.endpoint,
            producer_host_id=host_id(),
            model_fingerprint=FINGERPRINT,
            dtype=torch.float32,
            shape=(2048, 1024),
            lanes=lanes,
        )


@pytest.fixture
async def killable() -> AsyncIterator[KillableProducer]:
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("producer_process.py")),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    producer_id, port = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    yield KillableProducer(process, producer_id, f"127.0.0.1:{port}")
    if process.returncode is None:
        process.kill()
    await process.wait()


async def test_a_producer_killed_under_its_consumers(killable: KillableProducer) -> None:
    """kill -9 while one fetch waits and others are in the middle of a transfer: Unavailable quickly, slab swept."""
    channels = ChannelPool(8 * MIB)
    fetcher = TensorFetcher(channels, "consumer-1", host_id(), TRANSPORT, FINGERPRINT)
    fetched = await fetcher.fetch(killable.ticket("held", "shm"), timeout_s=20)
    assert fetched.lane == "shm" and fetched.tensor.sum() == 2048 * 1024
    slab = SHARED_MEMORY_FOLDER / f"triptych-{killable.producer_id}"
    assert slab.exists() and slab.name not in sweep_dead_slabs()

    waiting = asyncio.create_task(fetcher.fetch(killable.ticket("pending", "shm", "grpc"), timeout_s=60))
    stub = tensor_pb2_grpc.TensorServiceStub(channels.get(killable.endpoint))
    request = tensor_pb2.FetchRequest(ticket_id="transfer", producer_id=killable.producer_id, lane="grpc")
    in_transfer = stub.Fetch(request, timeout=60)
    assert (await in_transfer.read()).HasField("header") and (await in_transfer.read()).HasField("chunk")
    await asyncio.sleep(0.1)
    assert not waiting.done()
    killable.process.send_signal(signal.SIGKILL)
    start_s = time.monotonic()
    with pytest.raises(Unavailable, match=killable.endpoint):
        await waiting
    with pytest.raises(Unavailable), rpc_errors():
        while await in_transfer.read() is not grpc.aio.EOF:
            pass
    assert time.monotonic() - start_s < 1
    with pytest.raises(Unavailable):
        await fetcher.fetch(killable.ticket("held", "shm", "grpc"), timeout_s=60)
    assert time.monotonic() - start_s < 3
    await killable.process.wait()
    assert slab.exists()
    assert slab.name in sweep_dead_slabs() and not slab.exists()
    await fetcher.close()
    assert time.monotonic() - start_s < 5
    await channels.close()


CONSUMER = """
import sys, time, grpc
from triptych.v1 import tensor_pb2, tensor_pb2_grpc
endpoint, producer_id, ticket_id = sys.argv[1:]
stub = tensor_pb2_grpc.TensorServiceStub(grpc.insecure_channel(endpoint))
request = tensor_pb2.FetchRequest(ticket_id=ticket_id, producer_id=producer_id, lane="shm")
call = stub.Fetch(request, timeout=60)
print(next(call).header.shared_memory.name, flush=True)
time.sleep(60)
"""


async def test_a_consumer_killed_while_reading_holds_nothing(make_pair: Any) -> None:
    pair = await make_pair(lanes=("shm",), lease_s=1.0)
    ticket = pair.ticket(TENSOR)
    pair.leases.grant(ticket.ticket_id, TENSOR)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", CONSUMER, pair.endpoint, pair.producer_id, ticket.ticket_id),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).decode().strip() == f"triptych-{pair.producer_id}"
    assert pair.leases.counters().pinned_leases == 1
    await asyncio.sleep(1.1)
    pair.leases.sweep()
    assert pair.leases.counters().held_leases == 1, "a lease went while it was being read"
    process.kill()
    await process.wait()
    slab = pair.service._lanes["shm"]._slab
    for _ in range(100):
        if slab.free_bytes == slab.num_bytes:
            break
        await asyncio.sleep(0.01)
    assert slab.free_bytes == slab.num_bytes and pair.leases.counters().pinned_leases == 0
    pair.leases.sweep()
    assert pair.leases.counters().held_leases == 0


def test_host_and_incarnation_ids(tmp_path: Path) -> None:
    assert host_id() == host_id() and "no-shared-memory" not in host_id()
    boot = tmp_path / "boot_id"
    boot.write_text("b-1\n")
    here = host_id(boot, tmp_path)
    assert here.startswith("b-1-") and host_id(boot, Path("/proc")) != here
    assert "no-shared-memory" in host_id(tmp_path / "none", tmp_path)
    ids = {new_incarnation_id("prefill_decode") for _ in range(100)}
    assert len(ids) == 100 and all(one.startswith("prefill-decode-") for one in ids)
    assert new_id() != new_id()
