"""Work that ends before it is done: cancelled, drained, closed, failed by the engine."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from encoder_samples import Gate, MakeStage, Samples, async_condition, until
from torch import Tensor

from encoder_service.stage import EncoderStage
from triptych.errors import (
    Cancelled,
    Unavailable,
)
from triptych.models.qwen2_5_vl.grid import Grid

WAIT_S = 30.0


async def test_cancelling_in_the_queue_drops_the_work(stage: EncoderStage, samples: Samples) -> None:
    gate = Gate(stage)
    running = asyncio.create_task(stage.encode([samples.picture(seed=1)], WAIT_S))
    await gate.wait_entered()
    next_batch = asyncio.create_task(stage.encode([samples.picture(seed=3)], WAIT_S))
    await until(async_condition(lambda: len(stage._batcher._in_work) == 2))
    item = samples.picture(seed=2)
    waiting = asyncio.create_task(stage.encode([item], WAIT_S))
    await until(async_condition(lambda: len(stage._batcher._waiting) == 1))
    fetch = asyncio.create_task(samples.fetch(item))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(Cancelled):
        await fetch
    await until(async_condition(lambda: stage.counters().pending_patches == 48))
    assert not stage._batcher._waiting
    gate.open()
    await asyncio.gather(running, next_batch)
    assert stage.counters().encoded_items == 2
    assert stage.leases.counters().held_leases == 2


async def test_cancelling_before_the_first_step_leaves_nothing(stage: EncoderStage, samples: Samples) -> None:
    call = asyncio.create_task(stage.encode([samples.picture()], WAIT_S))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(async_condition(lambda: stage.counters().pending_patches == 0))
    assert stage._pipeline.num_in_flight == 0
    await stage.encode([samples.picture()], WAIT_S)


async def test_cancelling_one_of_two_who_wait_for_a_picture(stage: EncoderStage, samples: Samples) -> None:
    gate = Gate(stage)
    first = asyncio.create_task(stage.encode([samples.picture()], WAIT_S))
    item = samples.picture()
    second = asyncio.create_task(stage.encode([item], WAIT_S))
    await gate.wait_entered()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.open()
    assert (await second)[0].is_cache_hit
    assert stage.counters().encoded_items == 1
    torch.testing.assert_close(await samples.fetch(item), samples.reference(item), atol=1e-6, rtol=0)
    assert stage.leases.counters().held_leases == 0


async def test_a_lease_that_is_being_read_outlives_a_cancelled_call(make_stage: MakeStage) -> None:
    stage = await make_stage(max_batch_patches=24)
    samples = Samples(stage)
    read, unread = samples.picture(seed=1), samples.picture(seed=2)
    await stage.encode([samples.picture(seed=1), samples.picture(seed=2)], WAIT_S)  # both in the cache
    gate = Gate(stage)
    call = asyncio.create_task(stage.encode([read, unread, samples.picture(seed=3)], WAIT_S))
    lease = await stage.leases.pin(read.ticket.ticket_id, 5.0)
    await gate.wait_entered()
    assert stage.leases.counters().held_leases == 4
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert stage.leases.counters().held_leases == 3
    torch.testing.assert_close(lease.tensor, samples.reference(read), atol=1e-6, rtol=0)
    stage.leases.unpin(lease)
    assert stage.leases.counters().held_leases == 2
    gate.open()


async def test_an_engine_that_fails_fails_its_batch_alone(stage: EncoderStage, samples: Samples) -> None:
    class Broken:
        device = stage._runner._engine.device

        def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
            raise RuntimeError("out of memory")

    engine = stage._runner._engine
    stage._runner._engine = Broken()  # type: ignore[assignment]
    with pytest.raises(Exception, match="out of memory"):
        await stage.encode([samples.picture()], WAIT_S)
    stage._runner._engine = engine
    await stage.encode([samples.picture()], WAIT_S)
    assert stage.counters().pending_patches == 0


async def test_drain_finishes_work_and_takes_no_more(stage: EncoderStage, samples: Samples) -> None:
    gate = Gate(stage)
    item = samples.picture()
    call = asyncio.create_task(stage.encode([item], WAIT_S))
    await gate.wait_entered()
    assert not await stage.drain(0.05)
    with pytest.raises(Unavailable, match="takes no new work"):
        await stage.encode([samples.picture(seed=9)], WAIT_S)
    draining = asyncio.create_task(stage.drain(10))
    gate.open()
    await call
    await asyncio.sleep(0.1)
    assert not draining.done()  # the embedding was not fetched yet
    await samples.fetch(item)
    assert await draining


async def test_closing_ends_what_waits(make_stage: MakeStage) -> None:
    stage = await make_stage()
    samples = Samples(stage)
    gate = Gate(stage)
    running = asyncio.create_task(stage.encode([samples.picture(seed=1)], WAIT_S))
    await gate.wait_entered()
    packed = asyncio.create_task(stage.encode([samples.picture(seed=2)], WAIT_S))
    await until(async_condition(lambda: len(stage._batcher._in_work) == 2))
    waiting = asyncio.create_task(stage.encode([samples.picture(seed=3)], WAIT_S))
    await until(async_condition(lambda: len(stage._batcher._waiting) == 1))
    closing = asyncio.create_task(stage.close())
    for call in (running, packed, waiting):
        with pytest.raises(Unavailable):
            await call
    gate.open()
    await closing
