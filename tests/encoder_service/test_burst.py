"""Pictures of all kinds at once, some broken, twice or given up: each gets its own, and nothing stays."""

import asyncio
import random

import pytest
import torch
from encoder_samples import MakeStage, Samples, async_condition, image_media, until
from media_samples import encoded, oriented, picture
from picture_burst import BurstPicture, draw_burst, send_burst
from torch import Tensor

from triptych.errors import InvalidRequest

COUNT = 200
WAIT_S = 100.0


@pytest.mark.timeout(100)
async def test_two_hundred_pictures_at_once(make_stage: MakeStage) -> None:
    # Small batches, little memory, more wishes than the queue holds at once would be refused: it holds all.
    stage = await make_stage(max_batch_patches=600, activation_bytes=24 << 20, cache_bytes=0, ageing_s=0.05)
    samples = Samples(stage)
    pictures = draw_burst(COUNT, max_side=240, seed=5)
    broken = {index for index, each in enumerate(pictures) if each.is_broken}
    cancelled = set(random.Random(1).sample(sorted(set(range(COUNT)) - broken), 25))
    assert len(broken) >= 10
    peak_bytes = 0

    async def send(each: BurstPicture) -> Tensor:
        nonlocal peak_bytes
        item = samples.item(each.media)
        call = asyncio.ensure_future(stage.encode([item], WAIT_S))
        try:
            fetched, done = await asyncio.gather(samples.fetch(item), call, return_exceptions=True)
        finally:
            call.cancel()
        peak_bytes = max(peak_bytes, stage.counters().activation_bytes)
        assert isinstance(fetched, BaseException) == isinstance(done, BaseException)
        if isinstance(fetched, BaseException):
            raise fetched
        return fetched

    results = await send_burst(pictures, send, cancelled)
    num_compared = 0
    for index, (each, result) in enumerate(zip(pictures, results, strict=True)):
        if index in broken:
            assert isinstance(result, InvalidRequest) and "media" in result.message, (each.kind, result)
        elif isinstance(result, BaseException):
            assert index in cancelled and isinstance(result, asyncio.CancelledError), (each.kind, result)
        else:
            item = samples.item(each.media)
            (alone,) = await stage.embed([samples.media_item(item)])
            assert alone.batch_items == 1
            torch.testing.assert_close(result, alone.tensor, atol=1e-5, rtol=0)
            num_compared += 1
    assert num_compared >= COUNT - len(broken) - len(cancelled)
    await until(async_condition(lambda: stage.counters().pending_patches == 0))
    counters, leases = stage.counters(), stage.leases.counters()
    assert 0 < peak_bytes <= counters.max_activation_bytes
    assert counters.activation_bytes == 0 and stage._preparation.held_bytes == 0
    assert (leases.held_leases, leases.pending) == (0, 0)
    assert stage._pipeline.num_in_flight == 0 and not stage._pipeline._wanted_until
    assert counters.num_batches > 10


async def test_a_burst_of_all_kinds_of_pictures(make_stage: MakeStage) -> None:
    """40 requests at once, some broken, some twice: each gets its own answer, and nothing stays."""
    stage = await make_stage(batch_wait_ms=1)
    samples = Samples(stage)
    random_source = random.Random(7)
    kinds = [
        ("RGB", "JPEG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("CMYK", "JPEG"),
        ("L", "WEBP"),
        ("1", "BMP"),
        ("LA", "TIFF"),
    ]
    items, broken = [], set()
    for index in range(40):
        mode, image_format = random_source.choice(kinds)
        width, height = random_source.randint(1, 300), random_source.randint(20, 300)
        image = picture(width, height, mode, seed=index)
        if image_format == "JPEG" and index % 3 == 0:
            items.append(samples.item(image_media(oriented(image, random_source.randint(1, 8), "JPEG"))))
        elif index % 7 == 0:
            broken.add(index)
            items.append(samples.cut_off(seed=index))
        elif index % 5 == 0 and index - 1 not in broken:
            items.append(samples.item(items[-1].media))
        else:
            items.append(samples.item(image_media(encoded(image, image_format))))
    contents = {item.ticket.content_key for index, item in enumerate(items) if index not in broken}
    assert len(contents) < 40 - len(broken) and len(broken) >= 4

    async def walk(index: int) -> Tensor:
        call, fetch = stage.encode([items[index]], WAIT_S), samples.fetch(items[index])
        encoded_items, fetched = await asyncio.gather(call, fetch, return_exceptions=True)
        assert isinstance(encoded_items, Exception) == isinstance(fetched, Exception)
        if isinstance(fetched, BaseException):
            raise fetched
        return fetched

    results = await asyncio.gather(*(walk(index) for index in range(40)), return_exceptions=True)
    for index, (item, result) in enumerate(zip(items, results, strict=True)):
        if index in broken:
            assert isinstance(result, InvalidRequest)
        else:
            assert isinstance(result, Tensor), result
            torch.testing.assert_close(result, samples.reference(item), atol=1e-5, rtol=0)
    counters, leases = stage.counters(), stage.leases.counters()
    assert counters.accepted_items == 40
    assert counters.encoded_items == len(contents)
    assert counters.cache_hits == 40 - len(broken) - len(contents)
    assert counters.pending_patches == 0
    assert (leases.held_leases, leases.pending, leases.granted) == (0, 0, 40 - len(broken))
