"""The rows of the transport benchmark: how each is measured, and how many GPUs it needs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.transport_bench.bare_link import time_bare_link
from benchmarks.transport_bench.producer import FINGERPRINT, MESSAGE_BYTES, ProducerProcess
from triptych.config import TransportSection
from triptych.rpc.channels import ChannelPool
from triptych.transport.fetcher import FetchedTensor, TensorFetcher
from triptych.transport.host import host_id

_WARM_UPS = 2
_SMALL, _LARGE, _CPU = 8_601_600, 200_001_536, 16 << 20


@dataclass(frozen=True)
class Measured:
    samples: list[float]
    details: Mapping[str, Any] = field(default_factory=dict)


async def time_fetches(lane: str, num_bytes: int, devices: tuple[str, str], repeats: int) -> Measured:
    """ms of each fetch; details: of which the producer took until the tensor was on offer, how long the consumer's
    first read of it takes, and the second (lane shm: what a fetch hands out is mapped page by page when it is read),
    and how long it takes to let go of the tensor before it.
    """
    transport = TransportSection(lanes=(lane,), link_timeout_s=30.0)
    torch.set_num_threads(1)
    channels = ChannelPool(MESSAGE_BYTES)
    fetcher = TensorFetcher(channels, "consumer-1", host_id(), transport, FINGERPRINT, torch.device(devices[1]))
    try:
        with ProducerProcess(transport, devices[0], num_bytes) as producer:
            samples, waits, reads, drops = [], [], [], []
            fetched: FetchedTensor | None = None
            for _ in range(repeats + _WARM_UPS):
                ticket, previous = producer.ticket(), fetched
                start_s = time.perf_counter()
                fetched = await fetcher.fetch(ticket, timeout_s=60)
                end_s = time.perf_counter()
                samples.append((end_s - start_s) * 1e3)
                del previous  # Unmapped now, when the clock of the fetch has stopped.
                drops.append((time.perf_counter() - end_s) * 1e3)
                waits.append(fetched.wait_s * 1e3)
                assert fetched.lane == lane
                reads.append((_read_ms(fetched.tensor), _read_ms(fetched.tensor)))
            assert fetched is not None
            assert torch.equal(fetched.tensor.cpu().view(torch.int16), producer.tensor().view(torch.int16))
    finally:
        await fetcher.close()
        await channels.close()
    best_gb_s = num_bytes / min(samples) / 1e6
    first_reads, next_reads = zip(*reads, strict=True)
    wait_ms, first_read_ms, next_read_ms, drop_ms = (
        sorted(each[_WARM_UPS:])[repeats // 2] for each in (waits, first_reads, next_reads, drops)
    )
    details = {
        "num_bytes": num_bytes,
        "first_ms": samples[0],
        "wait_ms": wait_ms,
        "best_gb_s": round(best_gb_s, 3),
        "first_read_ms": round(first_read_ms, 3),
        "next_read_ms": round(next_read_ms, 3),
        "drop_ms": round(drop_ms, 3),
    }
    return Measured(samples[_WARM_UPS:], details)


def _read_ms(tensor: torch.Tensor) -> float:
    """One pass over every byte."""
    start_s = time.perf_counter()
    tensor.view(torch.int16).max().item()
    return (time.perf_counter() - start_s) * 1e3


async def rate_of_fetches(lane: str, num_bytes: int, devices: tuple[str, str], repeats: int) -> Measured:
    """GB/s of each fetch."""
    measured = await time_fetches(lane, num_bytes, devices, repeats)
    return Measured([num_bytes / sample / 1e6 for sample in measured.samples], measured.details)


async def bare_nccl(figure: str, num_bytes: int, repeats: int) -> Measured:
    """`figure` of a link over NCCL without anything around it: "ms", "gb_s", "open_s" or "memory_mb"."""
    timing = await time_bare_link(num_bytes, repeats + _WARM_UPS)
    samples = {
        "ms": timing.transfer_ms[_WARM_UPS:],
        "gb_s": [num_bytes / each / 1e6 for each in timing.transfer_ms[_WARM_UPS:]],
        "open_s": timing.open_s[1:],
        "memory_mb": timing.memory_mb[1:],
    }
    first = {"first_open_s": timing.open_s[0], "first_memory_mb": timing.memory_mb[0]}
    return Measured(samples[figure], {"num_bytes": num_bytes, **first})


Measure = Callable[[int], Awaitable[Measured]]
_HOST, _ONE_GPU, _TWO_GPUS = ("cpu", "cpu"), ("cuda:0", "cuda:0"), ("cuda:0", "cuda:1")

# Name -> (measure, GPUs that it needs).
ROWS: Mapping[str, tuple[Measure, int]] = MappingProxyType(
    {
        "shm_16mb": (partial(time_fetches, "shm", _CPU, _HOST), 0),
        "gloo_16mb": (partial(time_fetches, "gloo", _CPU, _HOST), 0),
        "grpc_gb_s": (partial(rate_of_fetches, "grpc", _LARGE, _HOST), 0),
        "cuda_ipc_8.6mb": (partial(time_fetches, "cuda_ipc", _SMALL, _ONE_GPU), 1),
        "cuda_ipc_200mb": (partial(time_fetches, "cuda_ipc", _LARGE, _ONE_GPU), 1),
        "nccl_8.6mb": (partial(bare_nccl, "ms", _SMALL), 2),
        "nccl_200mb_gb_s": (partial(bare_nccl, "gb_s", _LARGE), 2),
        "nccl_open_s": (partial(bare_nccl, "open_s", _SMALL), 2),
        "nccl_link_mb": (partial(bare_nccl, "memory_mb", _SMALL), 2),
        "nccl_fetch_8.6mb": (partial(time_fetches, "nccl", _SMALL, _TWO_GPUS), 2),
        "nccl_fetch_200mb": (partial(time_fetches, "nccl", _LARGE, _TWO_GPUS), 2),
    }
)
