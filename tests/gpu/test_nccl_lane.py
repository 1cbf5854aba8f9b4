"""Lane nccl between two processes, each with a GPU of its own: bits, links, a peer that is killed."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA devices", allow_module_level=True)

from benchmarks.transport_bench.producer import FINGERPRINT, MESSAGE_BYTES, ProducerProcess, used_gpu_bytes
from triptych.config import TransportSection
from triptych.errors import Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.transport.fetcher import TensorFetcher
from triptych.transport.host import host_id
from triptych.transport.links.lane import NcclConsumerLane

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]

NUM_BYTES = 8_600_000 // 2048 * 2048
# The first link of a process loads NCCL.
TRANSPORT = TransportSection(lanes=("nccl",), memory_checksums=True, link_timeout_s=30.0, lane_retry_s=0.1)


async def test_a_tensor_crosses_between_two_gpus_and_a_killed_peer_costs_one_fetch() -> None:
    device = torch.device("cuda", 1)
    channels = ChannelPool(MESSAGE_BYTES)
    fetcher = TensorFetcher(channels, "consumer-1", host_id(), TRANSPORT, FINGERPRINT, device)
    (lane,) = fetcher._lanes
    assert isinstance(lane, NcclConsumerLane)
    with ProducerProcess(TRANSPORT, "cuda:0", NUM_BYTES) as other:
        with ProducerProcess(TRANSPORT, "cuda:0", NUM_BYTES) as producer:
            expected = producer.tensor()
            before = used_gpu_bytes(device)
            for each in (producer, other):
                for _ in range(4):
                    start_s = time.perf_counter()
                    fetched = await fetcher.fetch(each.ticket(), timeout_s=60)
                    print(f"nccl {NUM_BYTES} bytes: {(time.perf_counter() - start_s) * 1e3:.2f} ms")
                    assert fetched.lane == "nccl" and fetched.tensor.device == device
                    assert torch.equal(fetched.tensor.cpu().view(torch.int16), expected.view(torch.int16))
                print(f"with its link: {(used_gpu_bytes(device) - before) / 1e6:.0f} MB")
            assert len(lane.links._links) == 2
            ticket = producer.ticket()
        start_s = time.perf_counter()
        with pytest.raises(Unavailable):
            await fetcher.fetch(ticket, timeout_s=60)
        # Long before the link's own deadline.
        assert time.perf_counter() - start_s < 20
        fetched = await fetcher.fetch(other.ticket(), timeout_s=60)
        assert torch.equal(fetched.tensor.cpu().view(torch.int16), expected.view(torch.int16))
        for _ in range(100):
            if not any(other.held().values()):
                break
            await asyncio.sleep(0.05)
        assert not any(other.held().values())
        await fetcher.close()
    await channels.close()
