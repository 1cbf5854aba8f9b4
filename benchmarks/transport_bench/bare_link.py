"""Links over NCCL without anything around them: two processes, a GPU each, the backend of the lane nccl."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from benchmarks.transport_bench.producer import used_gpu_bytes
from triptych.config import TransportSection
from triptych.transport.links.backend import CONSUMER_RANK, PRODUCER_RANK
from triptych.transport.links.meeting import Meeting, join_meeting
from triptych.transport.links.nccl import NcclBackend

_HOST, _TIMEOUT_S, _NUM_LINKS = "127.0.0.1", 30.0, 4


@dataclass
class LinkTiming:
    """Of the receiver. The first link of a process loads NCCL and its kernels, and counts apart."""

    open_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    transfer_ms: list[float] = field(default_factory=list)


async def time_bare_link(num_bytes: int, repeats: int) -> LinkTiming:
    """Opens a few links one after the other; transfers go over the last."""
    return await asyncio.to_thread(_receive, num_bytes, repeats)


def _receive(num_bytes: int, repeats: int) -> LinkTiming:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    sender = context.Process(target=_send, args=(theirs, num_bytes, repeats), daemon=True)
    sender.start()
    theirs.close()
    device, timing, links = torch.device("cuda", 1), LinkTiming(), []
    try:
        target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        for _ in range(_NUM_LINKS):
            port = ours.recv()
            torch.cuda.synchronize(device)
            before, start_s = used_gpu_bytes(device), time.perf_counter()
            link = NcclBackend(_HOST, device, TransportSection().nccl_max_ctas)
            link.open(join_meeting(_HOST, port, _TIMEOUT_S), CONSUMER_RANK, _TIMEOUT_S)
            timing.open_s.append(time.perf_counter() - start_s)
            timing.memory_mb.append((used_gpu_bytes(device) - before) / 1e6)
            links.append(link)
        for _ in range(repeats):
            ours.send("ready")
            ours.recv()  # The sender is about to post.
            start_s = time.perf_counter()
            links[-1].recv(target).wait(_TIMEOUT_S)
            timing.transfer_ms.append((time.perf_counter() - start_s) * 1e3)
    finally:
        for link in links:
            link.abort()
        sender.kill()
        sender.join()
    return timing


def _send(connection: Connection, num_bytes: int, repeats: int) -> None:
    device, links = torch.device("cuda", 0), []
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    for _ in range(_NUM_LINKS):
        meeting = Meeting(_HOST, _TIMEOUT_S)
        connection.send(meeting.port)
        link = NcclBackend(_HOST, device, TransportSection().nccl_max_ctas)
        link.open(meeting.store, PRODUCER_RANK, _TIMEOUT_S)
        links.append(link)
    for _ in range(repeats):
        connection.recv()
        connection.send("posting")
        links[-1].send(source).wait(_TIMEOUT_S)
    connection.recv()
