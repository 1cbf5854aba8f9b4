"""Lane cuda_ipc between two real processes on one GPU: bits, lifetimes, and what a transfer takes."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from benchmarks.transport_bench.producer import FINGERPRINT, MESSAGE_BYTES, ProducerProcess
from triptych.config import TransportSection
from triptych.errors import Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.transport.cuda_ipc.lane import CudaIpcConsumerLane
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import host_id

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

TRANSPORT = TransportSection(lanes=("cuda_ipc",), memory_checksums=False)


@pytest.mark.parametrize("num_bytes", [8_600_000 // 2048 * 2048, 200_000_000 // 2048 * 2048])
async def test_a_tensor_crosses_between_two_processes(num_bytes: int) -> None:
    device = torch.device("cuda", 0)
    channels = ChannelPool(MESSAGE_BYTES)
    fetcher = TensorFetcher(channels, "consumer-1", host_id(), TRANSPORT, FINGERPRINT, device)
    (lane,) = fetcher._lanes
    assert isinstance(lane, CudaIpcConsumerLane)
    with ProducerProcess(TRANSPORT, "cuda:0", num_bytes) as producer:
        expected = producer.tensor().to(device)
        samples = []
        # Busy meanwhile: a transfer waits for nothing that the model does.
        busy = torch.randn(4096, 4096, device=device)
        for repeat in range(8):
            ticket = producer.ticket()
            if repeat % 2:
                for _ in range(20):
                    busy @ busy
            start_s = time.perf_counter()
            fetched = await fetcher.fetch(ticket, timeout_s=30)
            samples.append((time.perf_counter() - start_s) * 1e3)
            assert fetched.lane == "cuda_ipc" and fetched.tensor.device == device
            assert torch.equal(fetched.tensor.view(torch.int16), expected.view(torch.int16))
        print(f"cuda_ipc {num_bytes} bytes: {' '.join(f'{sample:.2f}' for sample in samples)} ms")
        ledger = fetcher.lane_counters()[0]
        assert (ledger.num_transfers, ledger.num_failures) == (8, 0)
        assert len(lane.mappings) == 1
        for _ in range(100):
            if not any(producer.held().values()):
                break
            await asyncio.sleep(0.05)
        assert not any(producer.held().values())
        ticket = producer.ticket()
    # Killed: the mapping of its memory goes with the error.
    with pytest.raises(Unavailable):
        await fetcher.fetch(ticket, timeout_s=30)
    assert len(lane.mappings) == 0
    await fetcher.close()
    await channels.close()
