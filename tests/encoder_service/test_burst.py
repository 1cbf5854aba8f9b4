"""200 pictures of all kinds at once, some broken, some given up: each gets its own, and nothing stays."""

import asyncio
import random

import pytest
import torch
from encoder_samples import MakeStage, Samples, async_condition, until
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
