"""Tensors arrive bit for bit over every lane, and what is not what the ticket said is refused."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transport_pair import MIB, TRANSPORT

from triptych.errors import (
    ConfigurationError,
    DeadlineExceeded,
    FailedPrecondition,
    IntegrityError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from triptych.rpc.status import rpc_errors
from triptych.transport.host import SHARED_MEMORY_FOLDER
from triptych.transport.ticket import new_id
from triptych.v1 import tensor_pb2, tensor_pb2_grpc
from triptych.v1.common_pb2 import FINISH_REASON_STOP

LANES = ["shm", "gloo", "grpc"]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
async def test_arrives_bit_for_bit(make_pair: Any, lane: str, dtype: torch.dtype) -> None:
    pair = await make_pair(lanes=(lane,))
    tensor = torch.randn(700, 1000).to(dtype)
    tensor[0, 0] = float("nan")
    ticket = pair.ticket(tensor)
    released: list[int] = []
    outcome = tensor_pb2.PrefillOutcome(first_token_id=7, finish_reason=FINISH_REASON_STOP)
    pair.leases.grant(ticket.ticket_id, tensor, outcome=outcome, on_release=lambda: released.append(1))
    fetched = await pair.fetcher.fetch(ticket, timeout_s=5)
    assert (fetched.lane, fetched.outcome) == (lane, outcome)
    assert fetched.tensor.dtype is dtype and fetched.tensor.shape == tensor.shape
    assert bits(fetched.tensor) == bits(tensor)
    assert fetched.tensor.data_ptr() != tensor.data_ptr()
    assert fetched.seconds >= 0 and fetched.wait_s >= 0
    await pair.settle()
    assert released == [1]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (1, 1), (2, 3, 2, 4, 1, 2)], ids=str)
async def test_empty_and_small_shapes(make_pair: Any, lane: str, shape: tuple[int, ...]) -> None:
    pair = await make_pair(lanes=(lane,))
    tensor = torch.randn(shape)
    ticket = pair.ticket(tensor)
    pair.leases.grant(ticket.ticket_id, tensor)
    fetched = await pair.fetcher.fetch(ticket, timeout_s=5)
    assert torch.equal(fetched.tensor, tensor) and fetched.outcome is None
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
async def test_twenty_megabytes(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    tensor = torch.randn(5_000, 1_048)[:, :1_047]  # Not contiguous, and no multiple of a chunk.
    ticket = pair.ticket(tensor)
    pair.leases.grant(ticket.ticket_id, tensor)
    assert torch.equal((await pair.fetcher.fetch(ticket, timeout_s=10)).tensor, tensor)
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
async def test_first_row_leaves_rows_out(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    tensor = torch.randn(10, 4, 3)
    for first_row in (0, 3, 10):
        ticket = pair.ticket(tensor)
        outcome = tensor_pb2.PrefillOutcome(first_token_id=5)
        pair.leases.grant(ticket.ticket_id, tensor, outcome=outcome)
        fetched = await pair.fetcher.fetch(ticket, first_row=first_row, timeout_s=5)
        assert torch.equal(fetched.tensor, tensor[first_row:]) and fetched.outcome == outcome
    ticket = pair.ticket(tensor)
    pair.leases.grant(ticket.ticket_id, tensor)
    with pytest.raises(InvalidRequest, match=r"first_row=11 .*10 rows"):
        await pair.fetcher.fetch(ticket, first_row=11, timeout_s=5)
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
async def test_many_fetches_at_once(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    tensors = [torch.randn(50 + i, 999) for i in range(24)]
    tickets = [pair.ticket(tensor) for tensor in tensors]
    fetches = [asyncio.create_task(pair.fetcher.fetch(ticket, timeout_s=10)) for ticket in tickets]
    for ticket, tensor in zip(tickets, tensors, strict=True):
        pair.leases.grant(ticket.ticket_id, tensor)
        await asyncio.sleep(0)
    for fetched, tensor in zip(await asyncio.gather(*fetches), tensors, strict=True):
        assert torch.equal(fetched.tensor, tensor)
    await pair.settle()
    assert pair.leases.counters().released == 24


async def test_the_best_common_lane_is_taken(make_pair: Any) -> None:
    tensor = torch.randn(4, 4)

    async def lane_of(pair: Any, **changes: Any) -> str:
        ticket = pair.ticket(tensor, **changes)
        pair.leases.grant(ticket.ticket_id, tensor)
        return (await pair.fetcher.fetch(ticket, timeout_s=5)).lane

    pair = await make_pair()
    assert await lane_of(pair) == "shm"
    assert await lane_of(pair, producer_host_id="elsewhere") == "grpc"
    assert await lane_of(pair, lanes=("future", "grpc")) == "grpc"
    assert (await make_pair(shared_memory_bytes=0)).service.lanes == ("grpc",)


async def test_no_common_lane_says_who_offers_what(make_pair: Any) -> None:
    pair = await make_pair(consumer=TRANSPORT.model_copy(update={"lanes": ("shm",)}))
    for changes in ({"lanes": ("grpc",)}, {"producer_host_id": "elsewhere"}):
        ticket = pair.ticket(torch.zeros(1), **changes)
        pair.leases.grant(ticket.ticket_id, torch.zeros(1))
        with pytest.raises(FailedPrecondition, match=r"serves .*grpc.*transport\.lanes allows shm"):
            await pair.fetcher.fetch(ticket, timeout_s=5)
    await pair.settle()


@pytest.mark.parametrize("lanes", [("shm", "grpc"), ("shm", "gloo", "grpc")], ids=" ".join)
async def test_a_lane_that_failed_keeps_nothing_of_what_came_over_the_next(make_pair: Any, lanes: Any) -> None:
    """A tensor goes when its owner lets go of it: its memory may be a slab's that others wait for."""
    pair = await make_pair(lanes=("grpc",), consumer=TRANSPORT.model_copy(update={"lanes": lanes}))
    tensor = torch.randn(3, 3)
    gc.collect()
    gc.disable()
    try:
        ticket = pair.ticket(tensor, lanes=lanes)
        pair.leases.grant(ticket.ticket_id, tensor)
        fetched = await pair.fetcher.fetch(ticket, timeout_s=5)
        assert fetched.lane == "grpc"
        arrived = weakref.ref(fetched.tensor)
        del fetched
        await pair.settle()
        assert arrived() is None
    finally:
        gc.enable()


async def test_a_producer_without_the_wanted_lane_refuses_and_the_next_one_is_tried(make_pair: Any) -> None:
    pair = await make_pair(lanes=("grpc",), consumer=TRANSPORT)
    tensor = torch.randn(3, 3)
    ticket = pair.ticket(tensor, lanes=("shm", "grpc"))
    pair.leases.grant(ticket.ticket_id, tensor)
    assert (await pair.fetcher.fetch(ticket, timeout_s=5)).lane == "grpc"
    ticket = pair.ticket(tensor, lanes=("shm",))
    pair.leases.grant(ticket.ticket_id, tensor)
    with pytest.raises(FailedPrecondition, match="lane 'shm' is not served here; served: grpc") as caught:
        await pair.fetcher.fetch(ticket, timeout_s=5)
    assert caught.value.field == "lane"
    await pair.settle()


async def test_a_tensor_that_came_over_the_second_lane_goes_with_its_last_reader(make_pair: Any) -> None:
    """Whoever keeps what was logged of the failure (here pytest does) keeps no tensor by that."""
    pair = await make_pair(lanes=("shm",), consumer=TRANSPORT.model_copy(update={"lanes": ("grpc", "shm")}))
    tensor = torch.randn(MIB)
    ticket = pair.ticket(tensor, lanes=("grpc", "shm"))
    pair.leases.grant(ticket.ticket_id, tensor)
    slab = pair.service._lanes["shm"]._slab
    gc.collect()
    gc.disable()
    try:
        fetched = await pair.fetcher.fetch(ticket, timeout_s=5)
        assert fetched.lane == "shm"
        await pair.settle()
        assert slab.free_bytes < slab.num_bytes
        del fetched
        assert slab.free_bytes == slab.num_bytes
    finally:
        gc.enable()


async def test_a_lane_nobody_knows_is_a_configuration_error(make_pair: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"no lane .pigeon.; there are .*shm, gloo, grpc"):
        await make_pair(lanes=("grpc", "pigeon"))
    with pytest.raises(ConfigurationError, match="pigeon"):
        await make_pair(consumer=TRANSPORT.model_copy(update={"lanes": ("pigeon",)}))


async def test_a_full_slab_falls_back_to_grpc_and_says_so(make_pair: Any) -> None:
    pair = await make_pair(shared_memory_bytes=1 * MIB)
    tensor = torch.randn(600, 1000)
    ticket = pair.ticket(tensor)
    pair.leases.grant(ticket.ticket_id, tensor)
    fetched = await pair.fetcher.fetch(ticket, timeout_s=5)
    assert fetched.lane == "grpc" and torch.equal(fetched.tensor, tensor)
    await pair.settle()
    forced = await make_pair(shared_memory_bytes=1 * MIB, lanes=("shm",))
    ticket = forced.ticket(tensor)
    forced.leases.grant(ticket.ticket_id, tensor)
    with pytest.raises(Overloaded, match=r"transport\.shared_memory_bytes"):
        await forced.fetcher.fetch(ticket, timeout_s=5)
    await forced.settle()


async def test_the_slab_is_free_again_after_each_fetch(make_pair: Any) -> None:
    pair = await make_pair(shared_memory_bytes=4 * MIB, lanes=("shm",))
    tensor = torch.randn(900, 1000)
    for _ in range(4):  # Each fills most of the slab: only one fits at a time.
        ticket = pair.ticket(tensor)
        pair.leases.grant(ticket.ticket_id, tensor)
        assert (await pair.fetcher.fetch(ticket, timeout_s=5)).lane == "shm"
        await pair.settle()


async def test_tensors_lie_with_their_producer_while_the_slab_has_room_and_are_copied_out_then(make_pair: Any) -> None:
    pair = await make_pair(lanes=("shm",))
    slab, kept = pair.service._lanes["shm"]._slab, []
    for number in range(24):  # 1.5 times the slab.
        tensor = torch.full((2 * MIB // 4,), float(number))
        ticket = pair.ticket(tensor)
        pair.leases.grant(ticket.ticket_id, tensor)
        kept.append((await pair.fetcher.fetch(ticket, timeout_s=5)).tensor)
    await pair.settle()
    num_lent = slab.num_bytes - slab.free_bytes
    assert 7 * 2 * MIB <= num_lent <= slab.num_bytes // 2 + 3 * MIB
    for number, tensor in enumerate(kept):
        assert tensor.min() == tensor.max() == number
    pair.service.close()
    assert kept[0].max() == 0 and kept[1].max() == 1  # The file is gone, not the memory.


async def test_memory_with_a_checksum_is_copied_out(make_pair: Any) -> None:
    pair = await make_pair(lanes=("shm",), memory_checksums=True)
    tensor = torch.randn(MIB)
    ticket = pair.ticket(tensor)
    pair.leases.grant(ticket.ticket_id, tensor)
    fetched = await pair.fetcher.fetch(ticket, timeout_s=5)
    await pair.settle()
    slab = pair.service._lanes["shm"]._slab
    assert slab.free_bytes == slab.num_bytes and torch.equal(fetched.tensor, tensor)


@pytest.mark.parametrize("lane", LANES)
async def test_dtype_and_shape_that_differ_are_named(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    cases = [
        (torch.zeros(4, 6), torch.zeros(4, 6).bfloat16(), "dtype", r"dtype bfloat16\[4, 6\].*expected float32\[4, 6\]"),
        (torch.zeros(4, 6), torch.zeros(5, 6), "shape", r"shape float32\[5, 6\].*expected float32\[4, 6\]"),
        (torch.zeros(4, 6), torch.zeros(4, 6, 1), "shape", r"shape float32\[4, 6, 1\]"),
    ]
    for promised, given, field, message in cases:
        ticket = pair.ticket(promised)
        pair.leases.grant(ticket.ticket_id, given)
        with pytest.raises(IntegrityError, match=message) as caught:
            await pair.fetcher.fetch(ticket, timeout_s=5)
        assert caught.value.field == field
    await pair.settle()


@pytest.mark.parametrize("lane", LANES)
async def test_other_weights_are_refused(make_pair: Any, lane: str) -> None:
    pair = await make_pair(lanes=(lane,))
    ticket = pair.ticket(torch.zeros(1), model_fingerprint="weights-2")
    pair.leases.grant(ticket.ticket_id, torch.zeros(1))
    with pytest.raises(FailedPrecondition, match=r"'weights-2', expected 'weights-1'.*model\.path"):
        await pair.fetcher.fetch(ticket, timeout_s=5)
    await pair.settle()


async def test_a_producer_of_other_weights_is_refused_by_its_header(make_pair: Any) -> None:
    pair = await make_pair(fingerprint="weights-2")
    ticket = pair.ticket(torch.zeros(1))
    pair.leases.grant(ticket.ticket_id, torch.zeros(1))
    with pytest.raises(FailedPrecondition, match="weights-2"):
        await pair.fetcher.fetch(ticket, timeout_s=5)
    await pair.settle()


async def test_another_incarnation_at_the_endpoint_is_unavailable(make_pair: Any) -> None:
    pair = await make_pair()
    ticket = pair.ticket(torch.zeros(1), producer_id="encoder-before")
    with pytest.raises(Unavailable, match=r"encoder-before.*replaced"):
        await pair.fetcher.fetch(ticket, timeout_s=5)


async def test_a_byte_changed_in_shared_memory_is_noticed(make_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = await make_pair(lanes=("shm",), memory_checksums=True)
    free = await make_pair(memory_checksums=True)
    tensor = torch.randn(300, 1000)

    def spoil_after_writing(pair: Any) -> None:
        slab = pair.service._lanes["shm"]._slab
        write = slab.write

        def spoiled(extent: Any, rows: torch.Tensor, has_checksum: bool) -> Any:
            crc32 = write(extent, rows, has_checksum)
            with open(SHARED_MEMORY_FOLDER / slab.name, "r+b") as file:
                file.seek(extent.offset + 70_001)
                old = file.read(1)
                file.seek(extent.offset + 70_001)
                file.write(bytes([old[0] ^ 1]))
            return crc32

        monkeypatch.setattr(slab, "write", spoiled)

    for pair in (forced, free):
        spoil_after_writing(pair)
    ticket = forced.ticket(tensor)
    forced.leases.grant(ticket.ticket_id, tensor)
    with pytest.raises(IntegrityError, match="crc32") as caught:
        await forced.fetcher.fetch(ticket, timeout_s=5)
    assert caught.value.field == "shared_memory.crc32"
    await forced.settle()
    ticket = free.ticket(tensor)
    free.leases.grant(ticket.ticket_id, tensor)
    fetched = await free.fetcher.fetch(ticket, timeout_s=5)
    assert fetched.lane == "grpc" and torch.equal(fetched.tensor, tensor)
    await free.settle()


def chunk(offset: int, data: bytes, crc32: int | None = None) -> tensor_pb2.FetchResponse:
    crc32 = zlib.crc32(data) if crc32 is None else crc32
    return tensor_pb2.FetchResponse(chunk=tensor_pb2.TensorChunk(offset=offset, data=data, crc32=crc32))


HEADER = {"dtype": 1, "shape": [2, 4], "num_bytes": 32}
WRONG_STREAMS = {
    "broken chunk": (HEADER, [chunk(0, b"x" * 32, crc32=1)], r"chunk at 0: crc32", "chunk.crc32"),
    "gap": (HEADER, [chunk(0, b"x" * 8), chunk(16, b"x" * 16)], r"at 16, expected .* 32 bytes at 8", "chunk.offset"),
    "too long": (HEADER, [chunk(0, b"x" * 33)], r"33 bytes at 0, expected the next of 32", "chunk.offset"),
    "empty chunk": (HEADER, [chunk(0, b"")], r"chunk of 0 bytes", "chunk.offset"),
    "too short": (HEADER, [chunk(0, b"x" * 8)], r"ended before", "num_bytes"),
    "no header": (None, [chunk(0, b"x" * 32)], r"begin with a header", "header"),
    "length": ({**HEADER, "num_bytes": 1 << 50}, [], r"length 1125899906842624 bytes, expected 32", "num_bytes"),
    "huge shape": ({**HEADER, "shape": [1 << 60, 0]}, [], r"over 1099511627776 bytes", "header.shape"),
    "no dtype": ({**HEADER, "dtype": 0}, [], r"data type 0 is unknown", "dtype"),
}


@pytest.mark.parametrize("case", WRONG_STREAMS)
async def test_a_stream_that_lies_is_refused(make_pair: Any, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """The producer here is real but for the one method that writes the stream."""
    pair = await make_pair(lanes=("grpc",))
    header, chunks, message, field = WRONG_STREAMS[case]

    async def send(rows: torch.Tensor, made: tensor_pb2.TensorHeader, write: Any, deadline: Any) -> None:
        if header is not None:
            made.ClearField("shape")
            made.dtype, made.num_bytes = header["dtype"], header["num_bytes"]
            made.shape.extend(header["shape"])
            await write(tensor_pb2.FetchResponse(header=made))
        for part in chunks:
            await write(part)

    monkeypatch.setattr(pair.service._lanes["grpc"], "send", send)
    ticket = pair.ticket(torch.zeros(2, 4))
    pair.leases.grant(ticket.ticket_id, torch.zeros(2, 4))
    with pytest.raises(IntegrityError, match=message) as caught:
        await pair.fetcher.fetch(ticket, timeout_s=5)
    assert caught.value.field == field
    await pair.settle()


@pytest.mark.parametrize("lane", ["shm", "grpc"])
async def test_the_slab_and_the_lease_go_when_the_consumer_takes_too_long(make_pair: Any, lane: str) -> None:
    """A consumer that reads nothing but the header, until its own deadline."""
    pair = await make_pair(lanes=(lane,))
    tensor = torch.randn(2_000, 1_000)
    ticket = pair.ticket(tensor)
    pair.leases.grant(ticket.ticket_id, tensor)
    request = tensor_pb2.FetchRequest(ticket_id=ticket.ticket_id, producer_id=pair.producer_id, lane=lane)
    stub = tensor_pb2_grpc.TensorServiceStub(pair.channels.get(pair.endpoint))
    call = stub.Fetch(request, timeout=0.5)
    assert (await call.read()).HasField("header")
    assert pair.leases.counters().pinned_leases == 1
    if lane == "shm":
        assert os.stat(SHARED_MEMORY_FOLDER / f"triptych-{pair.producer_id}").st_blocks > 0
        with pytest.raises(DeadlineExceeded), rpc_errors():
            await call.read()
    else:
        await asyncio.sleep(0.6)
    for _ in range(100):
        if pair.leases.counters().pinned_leases == 0:
            break
        await asyncio.sleep(0.01)
    assert pair.leases.counters().pinned_leases == 0
    if lane == "shm":
        slab = pair.service._lanes["shm"]._slab
        assert slab.free_bytes == slab.num_bytes
    pair.leases.release([ticket.ticket_id])
    await pair.settle()


async def test_requests_with_bad_ids_are_refused(make_pair: Any) -> None:
    pair = await make_pair()
    stub = tensor_pb2_grpc.TensorServiceStub(pair.channels.get(pair.endpoint))
    with pytest.raises(InvalidRequest, match="ticket_id"), rpc_errors():
        await stub.Fetch(tensor_pb2.FetchRequest(ticket_id="../x", producer_id=pair.producer_id)).read()
    with pytest.raises(InvalidRequest, match="at most 4096"), rpc_errors():
        await stub.Release(tensor_pb2.ReleaseRequest(ticket_ids=["a"] * 5_000))
    answer = await stub.Renew(tensor_pb2.RenewRequest(ticket_ids=[new_id()]))
    assert len(answer.unknown_ticket_ids) == 1


def test_the_slab_file_is_private_and_goes_with_its_owner() -> None:
    from triptych.transport.shared_memory import SharedMemorySlab

    slab = SharedMemorySlab("encoder-private", MIB)
    path = Path(SHARED_MEMORY_FOLDER / slab.name)
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size == MIB
    slab.close()
    slab.close()
    assert not path.exists()
