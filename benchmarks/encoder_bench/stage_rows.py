"""Rows of the whole stage in this process: one picture when nothing else runs, and as many as it can take."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch

from benchmarks.encoder_bench.bench import EncoderBench, Measure, Measured, median, with_comment
from benchmarks.encoder_bench.rows import prepared_items, time_decoding
from encoder_service.items import Embedding, MediaItem
from encoder_service.stage import EncoderStage
from triptych.errors import Overloaded
from triptych.transport.copying import run_copy
from triptych.transport.device_copy import DeviceCopies
from triptych.transport.shared_memory import SharedMemorySlab

IN_FLIGHT = 32
SUSTAINED_S, QUICK_SUSTAINED_S = 10.0, 1.0
WARM_UP_S, QUICK_WARM_UP_S = 1.5, 0.2
# Pictures of other pixels; each goes through the stage several times as another file.
_DISTINCT = 96
_SLAB_BYTES = 512 << 20


def idle_picture(bench: EncoderBench) -> Measured:
    """Milliseconds from handing the stage one 720p JPEG to its embedding, one after another; other pictures each."""
    return asyncio.run(_idle_picture(bench))


async def _idle_picture(bench: EncoderBench) -> Measured:
    count = 6 * bench.repeats
    items = bench.items("720p", bench.jpegs("720p", count + 5, first_seed=10_000))
    stage = bench.make_stage()
    stage.start()
    samples: list[float] = []
    embeddings: list[Embedding] = []
    try:
        for index, item in enumerate(items):
            started = time.perf_counter()
            (embedding,) = await stage.embed([item])
            if index >= 5:
                samples.append((time.perf_counter() - started) * 1e3)
                embeddings.append(embedding)
    finally:
        await stage.close()
    parts = {
        "queue_ms": median([embedding.queue_s * 1e3 for embedding in embeddings]),
        "prepare_ms": median([embedding.preprocess_s * 1e3 for embedding in embeddings]),
        "pack_and_tower_ms": median([embedding.encode_s * 1e3 for embedding in embeddings]),
    }
    return Measured(samples, parts | {"p99_ms": float(np.percentile(samples, 99))})


def sustained(bench: EncoderBench) -> Measured:
    """720p JPEG pictures a second with 32 in flight, each encoded and laid into shared memory as for a consumer on the
    host. details: memory of the GPU beyond the weights against its budget, times of a picture."""
    return asyncio.run(_sustained(bench))


class _Loop:
    """A closed loop of callers. `finished` has the times at which pictures were done."""

    def __init__(self, bench: EncoderBench, stage: EncoderStage, slab: SharedMemorySlab) -> None:
        self.finished: list[float] = []
        self.embeddings: list[Embedding] = []
        self.hand_over_s: list[float] = []
        self._bench = bench
        self._stage = stage
        self._slab = slab
        self._files = bench.jpegs("720p", 8 if bench.is_quick else _DISTINCT, first_seed=20_000)
        self._numbers = itertools.count()
        self._copies = DeviceCopies()
        self.num_beside_slab = 0

    async def run(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(self._caller(end) for _ in range(IN_FLIGHT)))

    async def _caller(self, end: float) -> None:
        while time.perf_counter() < end:
            (embedding,) = await self._stage.embed([self._next_item()])
            started = time.perf_counter()
            await self._hand_over(embedding.tensor)
            self.hand_over_s.append(time.perf_counter() - started)
            # Not its tensor, which the cache alone is to hold.
            self.embeddings.append(replace(embedding, tensor=torch.empty(0)))
            self.finished.append(time.perf_counter())

    async def _hand_over(self, tensor: torch.Tensor) -> None:
        """As the lane shm does; into other memory of the host where /dev/shm is too small."""
        try:
            extent = self._slab.allocate(tensor.nbytes)
        except Overloaded:
            extent = None
        try:
            if extent is not None:
                await run_copy(tensor.nbytes, self._slab.write, extent, tensor)
                return
        except Overloaded:
            pass
        finally:
            if extent is not None:
                self._slab.free(extent)
        self.num_beside_slab += 1
        await run_copy(tensor.nbytes, self._copies.to_host, tensor)

    def _next_item(self) -> MediaItem:
        """Another file each time; its hash is reckoned here as the router would."""
        number = next(self._numbers)
        data = with_comment(self._files[number % len(self._files)], str(number))
        return self._bench.items("720p", [data])[0]


async def _sustained(bench: EncoderBench) -> Measured:
    stage, slab = bench.make_stage(), SharedMemorySlab(f"encoder-bench-{os.getpid()}", _SLAB_BYTES)
    loop = _Loop(bench, stage, slab)
    bench.synchronize()
    is_cuda = bench.device.type == "cuda"
    held_bytes = torch.cuda.memory_allocated() if is_cuda else 0
    stage.start()
    try:
        await loop.run(QUICK_WARM_UP_S if bench.is_quick else WARM_UP_S)
        for kept in (loop.finished, loop.embeddings, loop.hand_over_s):
            kept.clear()
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        await loop.run(QUICK_SUSTAINED_S if bench.is_quick else SUSTAINED_S)
        counters = stage.counters()
    finally:
        await stage.close()
        slab.close()
    peak_bytes = torch.cuda.max_memory_allocated() if is_cuda else 0
    reserved_bytes = torch.cuda.max_memory_reserved() if is_cuda else 0
    elapsed_s = loop.finished[-1] - started
    embeddings = loop.embeddings
    bench.notes["hand_over_ms"] = median([seconds * 1e3 for seconds in loop.hand_over_s])
    return Measured(
        [len(embeddings) / elapsed_s],
        {
            "pictures": len(embeddings),
            "seconds": elapsed_s,
            "pictures_per_s_in_fifths": _rates(loop.finished, started, elapsed_s),
            "in_flight": IN_FLIGHT,
            "items_a_batch": sum(embedding.batch_items for embedding in embeddings) / len(embeddings),
            "queue_ms": median([embedding.queue_s * 1e3 for embedding in embeddings]),
            "prepare_ms": median([embedding.preprocess_s * 1e3 for embedding in embeddings]),
            "pack_and_tower_ms": median([embedding.encode_s * 1e3 for embedding in embeddings]),
            "hand_over_ms": bench.notes["hand_over_ms"],
            "peak_bytes_beyond_weights": peak_bytes - held_bytes,
            "budget_bytes": bench.section.activation_bytes + bench.section.cache_bytes,
            "peak_allocated_bytes": peak_bytes,
            "peak_reserved_bytes": reserved_bytes,
            "beside_slab": loop.num_beside_slab,
            "batches": counters.num_batches,
            "host_cache_items": counters.host_cache_items,
        },
    )


def _rates(finished: Sequence[float], started: float, elapsed_s: float, num_parts: int = 5) -> list[float]:
    """Pictures a second in equal parts of the time."""
    edges = np.linspace(started, started + elapsed_s, num_parts + 1)
    counts, _ = np.histogram(finished, bins=edges)
    return [float(count) * num_parts / elapsed_s for count in counts]


def shares(bench: EncoderBench) -> Measured:
    """Percent of a 720p picture's work that is the tower, in a batch of four. details: milliseconds a picture of each
    step and its share; the steps overlap when many pictures come."""
    loader, count = bench.make_loader(), 4
    prepares, decodes, packs, towers = [], [], [], []
    for repeat in range(bench.repeats + 2):
        items = bench.items("720p", bench.jpegs("720p", count, first_seed=30_000 + count * repeat))
        prepares.append(bench.timed_ms(lambda: prepared_items(loader, items)) / count)  # noqa: B023
        prepared = prepared_items(loader, items)
        decodes.append(time_decoding(bench, loader, prepared) / count)
        packs.append(bench.timed_ms(lambda: loader.pack(prepared)) / count)  # noqa: B023
        patches, grids = loader.pack(prepared).on_current_stream(), [item.grid for item in items]
        towers.append(bench.timed_ms(lambda: bench.engine.encode(patches, grids)) / count)  # noqa: B023
    loader.close()
    decode_ms = median(decodes[2:])
    steps = {
        "prepare": median(prepares[2:]),
        "decode": decode_ms,
        "resize": max(median(packs[2:]) - decode_ms, 0.0),
        "tower": median(towers[2:]),
        "hand_over": bench.notes.get("hand_over_ms", 0.0),
    }
    total = sum(steps.values())
    details: dict[str, object] = {f"{step}_ms": value for step, value in steps.items()}
    details |= {f"{step}_percent": 100 * value / total for step, value in steps.items()}
    return Measured([100 * steps["tower"] / total], details)


ROWS: Mapping[str, Measure] = MappingProxyType(
    {
        "jpeg_to_embedding_1x720p": idle_picture,
        "sustained_720p": sustained,
        "shares_720p": shares,
    }
)
