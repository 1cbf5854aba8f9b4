"""The rows of the router's table. A client that costs next to nothing: one message asked, raw messages read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import cycle
from statistics import median
from typing import Any

import grpc

from benchmarks.router_bench.processes import RunningRouter, running_router
from triptych.rpc.channels import channel_options
from triptych.v1 import common_pb2, inference_pb2, inference_pb2_grpc

_NO_LIMIT = -1
# Steps of 256 answers: 40,000 tokens/s, what the 3B engine is to reach with as many.
STEP_S = 0.0064
# Connections go to one process or another by chance, so there are many.
_NUM_CHANNELS = 16


def message(max_tokens: int, text: str = "What is in the picture?") -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        messages=[inference_pb2.ChatMessage(role="user", parts=[inference_pb2.ContentPart(text=text)])],
        sampling=common_pb2.SamplingParameters(max_tokens=max_tokens, ignore_eos=True, temperature=0),
    )


class LoadClient:
    """Asks over its channels in turn; counts tokens, decodes nothing else."""

    def __init__(self, endpoint: str, num_channels: int = 1) -> None:
        options = channel_options(_NO_LIMIT)
        self._channels = [grpc.aio.insecure_channel(endpoint, options=options) for _ in range(num_channels)]
        self._stubs = cycle([inference_pb2_grpc.InferenceServiceStub(channel) for channel in self._channels])

    async def ask(self, request: inference_pb2.GenerateRequest) -> int:
        """The number of tokens that came."""
        num_tokens = 0
        async for response in next(self._stubs).Generate(request, timeout=120):
            num_tokens += len(response.chunk.token_ids)
        return num_tokens

    def begin(self, request: inference_pb2.GenerateRequest) -> grpc.aio.UnaryStreamCall[Any, Any]:
        """A call that nobody reads."""
        call: grpc.aio.UnaryStreamCall[Any, Any] = next(self._stubs).Generate(request, timeout=120)
        return call

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))


async def latency_ms(client: LoadClient, num_requests: int) -> list[float]:
    """Of requests of one token, one at a time."""
    request, samples = message(1), []
    for _ in range(num_requests):
        started_s = time.perf_counter()
        await client.ask(request)
        samples.append(1e3 * (time.perf_counter() - started_s))
    return samples


async def requests_per_second(client: LoadClient, num_requests: int, at_once: int) -> float:
    """Of requests of one token, `at_once` under way."""
    await _closed_loop(client, message(1), at_once, at_once)
    started_s = time.perf_counter()
    await _closed_loop(client, message(1), num_requests, at_once)
    return num_requests / (time.perf_counter() - started_s)


async def tokens_per_second(client: LoadClient, num_streams: int, num_tokens: int) -> float:
    """Of `num_streams` answers that run together."""
    started_s = time.perf_counter()
    counts = await asyncio.gather(*(client.ask(message(num_tokens)) for _ in range(num_streams)))
    assert counts == [num_tokens] * num_streams, "tokens are missing"
    return sum(counts) / (time.perf_counter() - started_s)


async def stopped_readers(router: RunningRouter, num_stopped: int) -> dict[str, float]:
    """Latency of others (ms) and the router's memory (bytes for each) while clients do not read their long answers."""
    client, lazy = LoadClient(router.endpoint), LoadClient(router.endpoint)
    before = await latency_ms(client, 200)
    memory = router.memory_bytes()
    calls = [lazy.begin(message(4_000)) for _ in range(num_stopped)]
    await asyncio.sleep(2.0)
    beside = await latency_ms(client, 200)
    grown = (router.memory_bytes() - memory) / num_stopped
    for call in calls:
        call.cancel()
    await client.close()
    await lazy.close()
    return {"alone_ms": median(before), "beside_ms": median(beside), "bytes_each": grown}


async def _closed_loop(
    client: LoadClient, request: inference_pb2.GenerateRequest, num_requests: int, at_once: int
) -> None:
    left = iter(range(num_requests))

    async def worker() -> None:
        for _ in left:
            assert await client.ask(request) == 1

    await asyncio.gather(*(worker() for _ in range(at_once)))


def measure(repeats: int, num_processes: int) -> dict[str, Sequence[float]]:
    """Samples by row id; with several router processes only what they are for, under names that say so."""
    with running_router(0.0, num_processes) as router:
        samples = asyncio.run(_quick_rows(router, repeats, num_processes))
    with running_router(STEP_S, num_processes) as router:
        samples |= asyncio.run(_token_rows(router, repeats, num_processes))
        if num_processes == 1:
            samples |= asyncio.run(_stopped_rows(router))
            return samples
    return {f"{name}_{num_processes}_processes": values for name, values in samples.items()}


async def _quick_rows(router: RunningRouter, repeats: int, num_processes: int) -> dict[str, Sequence[float]]:
    client = LoadClient(router.endpoint, _channels_for(num_processes))
    await latency_ms(client, 100)
    latencies = await latency_ms(client, 300 * repeats)
    cpu_s = router.cpu_s()
    rates = [await requests_per_second(client, 1_000, 64) for _ in range(repeats)]
    router_cpu_ms = 1e3 * (router.cpu_s() - cpu_s) / (repeats * 1_064)
    await client.close()
    return {"router.request_ms": latencies, "router.requests_s": rates, "router.cpu_ms": [router_cpu_ms]}


async def _token_rows(router: RunningRouter, repeats: int, num_processes: int) -> dict[str, Sequence[float]]:
    client = LoadClient(router.endpoint, _channels_for(num_processes))
    await latency_ms(client, 20)
    cpu_s = router.cpu_s()
    rates = [await tokens_per_second(client, num_streams=256, num_tokens=200) for _ in range(repeats)]
    cpu_ms = 1e3 * (router.cpu_s() - cpu_s) / (repeats * 256 * 200 / 1_000)
    await client.close()
    return {"router.tokens_s": rates, "router.cpu_ms_1000_tokens": [cpu_ms]}


async def _stopped_rows(router: RunningRouter) -> dict[str, Sequence[float]]:
    stopped = await stopped_readers(router, num_stopped=20)
    return {
        "router.stopped_reader_bytes": [stopped["bytes_each"]],
        "router.beside_stopped_readers": [stopped["beside_ms"] / stopped["alone_ms"]],
    }


def _channels_for(num_processes: int) -> int:
    return 1 if num_processes == 1 else _NUM_CHANNELS
