"""The lane cuda_ipc over a driver whose memory is the host's: bytes, bounds, lifetimes, errors, ledger."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fake_cuda import FakeCudaDriver, FakeGpu
from transport_pair import MIB, Pair

from triptych.errors import IntegrityError, Unavailable
from triptych.transport.cuda_ipc.lane import CudaIpcConsumerLane, CudaIpcProducerLane
from triptych.transport.cuda_ipc.slab import STAMP, CudaPiece, CudaSlab
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import host_id
from triptych.transport.lane_counters import LaneLedger
from triptych.transport.ticket import Ticket

CPU = torch.device("cpu")
TENSOR = torch.randn(500, 1000)
Equip = Callable[..., Pair]


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu(64 * MIB)


@pytest.fixture
def equip(gpu: FakeGpu) -> Equip:
    """Gives a pair the lane cuda_ipc, before its other lanes."""

    def add(pair: Pair, slab_bytes: int = 8 * MIB, idle_s: float = 60.0, has_checksums: bool = False) -> Pair:
        driver = FakeCudaDriver(gpu)
        make_slab = partial(CudaSlab, pair.producer_id, slab_bytes, driver)
        producer = CudaIpcProducerLane(make_slab, CPU, "GPU-1", has_checksums=has_checksums)
        consumer = CudaIpcConsumerLane(pair.channels, "consumer-1", host_id(), driver, CPU, {"GPU-1": CPU}, idle_s)
        pair.service._lanes = {"cuda_ipc": producer, **pair.service._lanes}
        pair.fetcher._lanes.insert(0, consumer)
        pair.fetcher._ledger = LaneLedger(lane.name for lane in pair.fetcher._lanes)
        return pair

    return add


def granted(pair: Pair, tensor: torch.Tensor = TENSOR, **changes: Any) -> Ticket:
    ticket = pair.ticket(tensor, **{"device_id": "GPU-1", **changes})
    pair.leases.grant(ticket.ticket_id, tensor)
    return ticket


async def fetch(pair: Pair, tensor: torch.Tensor = TENSOR, **changes: Any) -> str:
    fetched = await pair.fetcher.fetch(granted(pair, tensor, **changes), timeout_s=20)
    assert torch.equal(fetched.tensor, tensor)
    assert fetched.tensor.data_ptr() != tensor.data_ptr() or tensor.nbytes == 0
    return fetched.lane


def producer_lane(pair: Pair) -> Any:
    return pair.service._lanes["cuda_ipc"]


def consumer_lane(pair: Pair) -> Any:
    return pair.fetcher._lanes[0]


async def until(is_true: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if is_true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass")


async def slab_is_free(pair: Pair) -> None:
    extents = producer_lane(pair)._slab.extents
    await until(lambda: extents.free_bytes == extents.num_bytes)


async def test_one_mapping_serves_all_fetches(make_pair: Any, equip: Equip, gpu: FakeGpu) -> None:
    pair = equip(await make_pair(), has_checksums=True)
    assert gpu.used_bytes == 0, "the slab is made by the first tensor"
    tensors = [torch.randn(20 + i, 1000)[:, : 1000 - i] for i in range(12)]
    assert set(await asyncio.gather(*(fetch(pair, tensor) for tensor in tensors))) == {"cuda_ipc"}
    assert await fetch(pair, torch.zeros(0, 8)) == "cuda_ipc"
    assert gpu.num_maps == 1 and gpu.used_bytes == 8 * MIB
    await pair.settle()
    await slab_is_free(pair)
    await consumer_lane(pair).close()
    pair.service.close()
    pair.service.close()
    assert not gpu.mapped and not gpu.allocated


@pytest.mark.parametrize(
    "changes", [{"device_id": ""}, {"device_id": "GPU-2"}, {"producer_host_id": "elsewhere"}], ids=str
)
async def test_only_a_gpu_that_is_seen_here_is_reached(make_pair: Any, equip: Equip, changes: dict[str, str]) -> None:
    pair = equip(await make_pair())
    assert await fetch(pair, **changes) in ("shm", "grpc")
    await pair.settle()


async def test_a_full_slab_is_passed_by_but_not_held_against_the_lane(make_pair: Any, equip: Equip) -> None:
    pair = equip(await make_pair())
    assert await fetch(pair, torch.randn(2_500, 1000)) == "shm"
    assert await fetch(pair) == "cuda_ipc"
    assert pair.fetcher.lane_counters()[0].num_failures == 1
    await pair.settle()
    await slab_is_free(pair)


async def test_no_memory_for_the_slab(make_pair: Any, equip: Equip, gpu: FakeGpu) -> None:
    pair = equip(await make_pair(), slab_bytes=65 * MIB)
    assert await fetch(pair) == "shm"
    assert gpu.used_bytes == 0
    await pair.settle()


async def test_a_handle_that_does_not_work_here_degrades_the_pair(make_pair: Any, equip: Equip, gpu: FakeGpu) -> None:
    pair = equip(await make_pair(lane_retry_s=0.3))
    assert await fetch(pair) == "cuda_ipc"
    consumer_lane(pair).mappings.close()
    exported = dict(gpu.exported)
    gpu.exported.clear()
    assert await fetch(pair) == "shm"
    gpu.exported.update(exported)
    assert await fetch(pair) == "shm", "left out"
    await asyncio.sleep(0.31)
    assert await fetch(pair) == "cuda_ipc", "and tried again"
    await pair.settle()
    await slab_is_free(pair)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("handle", b"x" * 63, "63 bytes, expected 64"),
        ("offset", 8 * MIB, "reach past the slab"),
        ("offset", 0, "expected 256 or more"),
        ("stamp", 0, "taken the piece back"),
        ("slab_bytes", 100, "reach past the slab of 100"),
        ("crc32", 1, "crc32"),
    ],
)
async def test_a_header_that_lies_is_refused(
    make_pair: Any, equip: Equip, monkeypatch: Any, field: str, value: Any, message: str
) -> None:
    pair = equip(await make_pair(lanes=()), has_checksums=True)
    lane = producer_lane(pair)
    send = lane.send

    async def lie(rows: Any, header: Any, write: Any, deadline: Any) -> None:
        async def write_changed(response: Any) -> None:
            setattr(response.header.cuda_memory, field, value)
            await write(response)

        await send(rows, header, write_changed, deadline)

    monkeypatch.setattr(lane, "send", lie)
    with pytest.raises((IntegrityError, Unavailable), match=message):
        await pair.fetcher.fetch(granted(pair), timeout_s=20)
    await pair.settle()
    await slab_is_free(pair)


async def test_the_mapping_of_a_producer_that_is_gone_is_let_go(make_pair: Any, equip: Equip, gpu: FakeGpu) -> None:
    pair = equip(await make_pair())
    assert await fetch(pair) == "cuda_ipc" and gpu.mapped
    ticket = granted(pair)
    await pair.server.stop(0)
    with pytest.raises(Unavailable):
        await pair.fetcher.fetch(ticket, timeout_s=20)
    assert not gpu.mapped


async def test_an_idle_mapping_is_let_go(make_pair: Any, equip: Equip, gpu: FakeGpu) -> None:
    pair = equip(await make_pair(), idle_s=0.05)
    assert await fetch(pair) == "cuda_ipc"
    await until(lambda: not gpu.mapped)
    assert await fetch(pair) == "cuda_ipc" and gpu.num_maps == 2
    await pair.settle()


async def test_cancelled_at_any_moment(make_pair: Any, equip: Equip, gpu: FakeGpu) -> None:
    pair = equip(await make_pair())
    for attempt in range(16):
        task = asyncio.create_task(pair.fetcher.fetch(granted(pair), timeout_s=20))
        await asyncio.sleep(attempt * 0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await fetch(pair) == "cuda_ipc"
    await pair.settle()
    await slab_is_free(pair)
    assert gpu.num_maps == 1


class HeldDriver(FakeCudaDriver):
    """Another process's; copies when it may."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__(gpu)
        self.has_begun, self.may_copy = threading.Event(), threading.Event()

    def map(self, handle: bytes) -> int:
        return self._gpu.exported[handle]

    def unmap(self, address: int) -> None:
        return

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        self.has_begun.set()
        assert self.may_copy.wait(20)
        super().copy(target, source, num_bytes)


@pytest.mark.parametrize("num_rows", [500, 200])
async def test_a_consumer_whose_memory_went_to_another_tensor_is_told(
    make_pair: Any, equip: Equip, gpu: FakeGpu, num_rows: int
) -> None:
    """Its connection broke while it read, which it does not know yet."""
    pair = equip(await make_pair(lanes=()))
    sending: list[asyncio.Task[Any]] = []
    lane = producer_lane(pair)
    send = lane.send

    async def note_and_send(*arguments: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        sending.append(task)
        await send(*arguments)

    lane.send = note_and_send
    late, driver = TensorFetcher(pair.channels, "consumer-2", host_id(), pair.transport, "weights-1"), HeldDriver(gpu)
    late._lanes = [CudaIpcConsumerLane(pair.channels, "consumer-2", host_id(), driver, CPU, {"GPU-1": CPU}, 60.0)]
    late._ledger = LaneLedger(["cuda_ipc"])
    fetching = asyncio.create_task(late.fetch(granted(pair), timeout_s=20))
    await until(driver.has_begun.is_set)
    sending[0].cancel()
    await slab_is_free(pair)
    for _ in range(3):
        assert await fetch(pair, torch.zeros(num_rows, 1000)) == "cuda_ipc"
    driver.may_copy.set()
    with pytest.raises(Unavailable):
        await fetching
    await late.close()
    await pair.settle()


def test_no_stamp_outlives_the_bytes_behind_it(gpu: FakeGpu) -> None:
    class CheckingDriver(FakeCudaDriver):
        def copy(self, target: int, source: int, num_bytes: int) -> None:
            found = {STAMP.unpack(self.read(slab._address + offset, STAMP.size))[0] for offset in range(0, 8_192, 512)}
            assert not found & gone
            super().copy(target, source, num_bytes)

    def lay(num_bytes: int) -> CudaPiece:
        piece = slab.allocate(num_bytes)
        slab.write(piece, torch.zeros(num_bytes, dtype=torch.uint8))
        return piece

    gone: set[int] = set()
    slab = CudaSlab("encoder-1", 1 * MIB, CheckingDriver(gpu))
    pieces = [lay(200), lay(700), lay(1_000)]
    for piece in pieces:
        slab.free(piece)
    gone.update(piece.stamp for piece in pieces)
    # Nothing is written here: what stood in it still goes before the next one.
    slab.free(slab.allocate(2_500))
    slab.free(lay(3_000))
    slab.close()


async def test_a_mapping_that_goes_while_a_fetch_waits_for_it_is_not_read(
    make_pair: Any, equip: Equip, gpu: FakeGpu
) -> None:
    pair = equip(await make_pair(lanes=()))
    mappings = consumer_lane(pair).mappings
    map_memory = mappings._map

    async def map_and_drop(producer_id: str, handle: bytes) -> Any:
        mapping = await map_memory(producer_id, handle)
        mappings.drop(producer_id)
        return mapping

    mappings._map = map_and_drop
    with pytest.raises(Unavailable, match="is gone"):
        await pair.fetcher.fetch(granted(pair), timeout_s=20)
    assert not gpu.mapped
    await pair.settle()
