"""The encode stage on a GPU: true widths of the tower, fused kernels, nvJPEG, a cache that spills."""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from gpu_helpers import free_unreachable, relative_error
from media_samples import encoded, picture
from picture_burst import BurstPicture, draw_burst, send_burst

from benchmarks.encoder_bench.bench import EncoderBench
from encoder_service.items import MediaItem
from triptych.errors import InvalidRequest
from triptych.media import content_key
from triptych.media.layout import media_layout
from triptych.transport.device_copy import DeviceCopies
from triptych.transport.shared_memory import SharedMemorySlab
from triptych.transport.slab_reader import copy_out
from triptych.v1 import common_pb2

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

COUNT = 200
MAX_SIDE = 1_000
MIB = 1 << 20
# Tables by picture size, of the resizer and of the tower's rotary embedding.
TABLE_BYTES = 96 * MIB
# Two layers in bfloat16: other shapes take other tilings.
TOLERANCE = 3e-2


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EncoderBench]:
    """Two layers of true width."""
    free_unreachable()
    folder = Path(tmp_path_factory.mktemp("encoder"))
    yield EncoderBench(folder, torch.device("cuda", 0), torch.bfloat16, is_quick=True, repeats=1)
    free_unreachable()


def item_of(bench: EncoderBench, media: common_pb2.Media) -> MediaItem:
    grid = media_layout(media, bench.processing, bench.limits, "media").grid
    return MediaItem(content_key(media), grid, media, "media")


async def test_two_hundred_pictures_at_once_within_memory(bench: EncoderBench) -> None:
    largest_patches = math.ceil(MAX_SIDE / 28) ** 2 * 4
    budget = 2 * bench.engine.activation_bytes(largest_patches) + 128 * MIB
    caches = {"cache_bytes": 48 * MIB, "host_cache_bytes": 256 * MIB}
    pictures = draw_burst(COUNT, max_side=MAX_SIDE, seed=11)
    broken = {index for index, each in enumerate(pictures) if each.is_broken}
    cancelled = set(random.Random(2).sample(sorted(set(range(COUNT)) - broken), 20))
    copies = DeviceCopies()
    items = [item_of(bench, each.media) for each in pictures]
    stage = bench.make_stage(activation_bytes=budget, **caches, max_pending_patches=10_000_000)
    stage.start()
    held = peak_held = 0

    async def send(each: BurstPicture) -> Tensor:
        nonlocal held, peak_held
        (embedding,) = await stage.embed([items[pictures.index(each)]])
        held += embedding.tensor.nbytes
        peak_held = max(peak_held, held)
        try:
            return await asyncio.to_thread(copies.to_host, embedding.tensor)
        finally:
            held -= embedding.tensor.nbytes

    try:
        # Graphs, tables and workspaces that stay are not the batches'.
        await send(pictures[next(index for index in range(COUNT) if index not in broken)])
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = await send_burst(pictures, send, cancelled)
        peak = torch.cuda.max_memory_allocated() - before
        counters = stage.counters()
    finally:
        await stage.close()
    print(f"peak {peak / MIB:.0f} MiB, budget {budget / MIB:.0f} MiB, handed over at once {peak_held / MIB:.0f} MiB")
    assert peak <= budget + caches["cache_bytes"] + peak_held + TABLE_BYTES
    assert counters.cache_bytes <= caches["cache_bytes"] and counters.host_cache_bytes <= caches["host_cache_bytes"]
    assert (counters.pending_patches, counters.activation_bytes) == (0, 0)

    alone = bench.make_stage(cache_bytes=0)
    alone.start()
    try:
        for index, (each, item, result) in enumerate(zip(pictures, items, results, strict=True)):
            if index in broken:
                assert isinstance(result, InvalidRequest), (each.kind, result)
            elif isinstance(result, BaseException):
                assert index in cancelled and isinstance(result, asyncio.CancelledError), (each.kind, result)
            else:
                (embedding,) = await alone.embed([item])
                assert relative_error(result, embedding.tensor.cpu()) < TOLERANCE, each.kind
    finally:
        await alone.close()


async def test_embeddings_spill_to_the_host_and_come_back(bench: EncoderBench) -> None:
    medias = [
        common_pb2.Media(kind=common_pb2.MEDIA_KIND_IMAGE, data=encoded(picture(280, 280, seed=seed), "JPEG"))
        for seed in range(12)
    ]
    items = [item_of(bench, media) for media in medias]
    num_bytes = items[0].grid.num_tokens(2) * bench.config.vision.out_hidden_size * 2
    # Eight embeddings, and room for one on its way to the host.
    cache_bytes = 10 * num_bytes
    stage = bench.make_stage(cache_bytes=cache_bytes, host_cache_bytes=64 * MIB)
    stage.start()
    try:
        first = []
        for item in items:
            (embedding,) = await stage.embed([item])
            first.append(embedding.tensor.clone())
            await stage._cache.wait_spilled()
        assert stage.counters().host_cache_items > 0 and stage.counters().cache_items <= 8
        again = []
        for item in items:
            again += await stage.embed([item])
            await stage._cache.wait_spilled()
        counters = stage.counters()
        assert counters.host_cache_hits == len(items) and counters.cache_bytes <= cache_bytes
        for before, after in zip(first, again, strict=True):
            assert after.is_cache_hit and after.tensor.device.type == "cuda"
            assert torch.equal(after.tensor, before)
    finally:
        await stage.close()


def test_a_tensor_of_the_gpu_through_shared_memory() -> None:
    tensor = torch.randn(333, 257, device="cuda").to(torch.bfloat16)
    torch.cuda.synchronize()
    slab = SharedMemorySlab(f"gpu-test-{os.getpid()}", 4 * MIB)
    try:
        extent = slab.allocate(tensor.nbytes)
        piece, crc32 = slab.write(extent, tensor)
        arrived = torch.empty(tensor.shape, dtype=tensor.dtype)
        copy_out(piece, crc32, arrived)
        assert torch.equal(arrived, tensor.cpu())
        slab.free(extent)
    finally:
        slab.close()


def test_copies_between_host_and_device_keep_every_bit() -> None:
    copies, source = DeviceCopies(), torch.randn(1_000, 37, device="cuda")
    torch.cuda.synchronize()
    on_host = copies.to_host(source[10:])
    assert on_host.is_pinned() and torch.equal(on_host, source[10:].cpu())
    assert torch.equal(copies.to_device(on_host, source.device), source[10:])
