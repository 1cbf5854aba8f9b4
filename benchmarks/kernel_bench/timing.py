"""Timing on a GPU: events around replays of a captured graph, medians, inputs that do not fit the L2 cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

L2_BYTES = 60 * 1024 * 1024
Call = Callable[[], object]


def warm_up_gpu(seconds: float = 0.7) -> None:
    """Brings the clocks to what they are under load."""
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    elapsed_s = 0.0
    while elapsed_s < seconds:
        for _ in range(20):
            matrix @ matrix
        end.record()
        end.synchronize()
        elapsed_s = start.elapsed_time(end) / 1e3


def num_sets(bytes_of_one: int, *, least: int = 4, most: int = 64) -> int:
    """How many sets of inputs to go through in turn, so that none is still in the cache when it comes again."""
    return max(least, min(most, -(-3 * L2_BYTES // max(1, bytes_of_one))))


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """One graph of all calls, each run once before: compilation and handles stay out of the capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    torch.cuda.synchronize()
    return graph


def time_in_graph(calls: Sequence[Call], *, rounds: int = 15, min_ms: float = 1.0) -> list[float]:
    """Microseconds a call, one sample a round; a round replays the graph of all calls for at least about `min_ms`."""
    graph = capture(calls)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    replays = max(1, min(50, int(min_ms / max(1e-3, start.elapsed_time(end)))))
    samples = []
    for _ in range(rounds):
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / (replays * len(calls)))
    return samples


def time_eager(call: Call, *, rounds: int = 10) -> list[float]:
    """Microseconds a call, launched one by one: for work long enough to hide a launch."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    samples = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3)
    return samples


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)
