"""Pictures of one request leave one after the other, in the order of its prompt, for a prefill that goes on beside."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from encoder_samples import Gate, MakeStage, Samples, async_condition, until

from encoder_service.items import EncodeItem
from encoder_service.stage import EncoderStage

WAIT_S = 30.0
# The largest first: by size alone it would go last.
SIZES = ((112, 168), (56, 84), (84, 84), (56, 56), (112, 84), (56, 112))


def granted_order(stage: EncoderStage) -> list[str]:
    """Ticket ids as they are granted from now on."""
    granted: list[str] = []
    grant = stage.leases.grant

    def noted(ticket_id: str, tensor: torch.Tensor) -> None:
        granted.append(ticket_id)
        grant(ticket_id, tensor)

    stage.leases.grant = noted  # type: ignore[method-assign, assignment]
    return granted


async def held_back(stage: EncoderStage, samples: Samples) -> tuple[Gate, list[asyncio.Task[object]]]:
    """A gate, and the two calls that keep the engine and the packing busy behind it."""
    gate = Gate(stage)
    calls: list[asyncio.Task[object]] = []
    for seed in (100, 101):
        calls.append(asyncio.create_task(stage.encode([samples.picture(224, 224, seed)], WAIT_S)))
        await until(async_condition(lambda: len(stage._batcher._in_work) == len(calls)))
    return gate, calls


async def waiting_call(stage: EncoderStage, items: Sequence[EncodeItem], num_waiting: int) -> asyncio.Task[list]:  # type: ignore[type-arg]
    call = asyncio.create_task(stage.encode(items, WAIT_S))
    await until(async_condition(lambda: len(stage._batcher._waiting) == num_waiting))
    return call


@pytest.mark.parametrize("batching", ["shortest_work_first", "first_come"])
@pytest.mark.parametrize("max_batch_patches", [1, 4_096])
async def test_in_the_order_of_the_prompt(make_stage: MakeStage, batching: str, max_batch_patches: int) -> None:
    stage = await make_stage(max_batch_patches=max_batch_patches, batching=batching, media_workers=4)
    samples = Samples(stage)
    gate, calls = await held_back(stage, samples)
    items = [samples.picture(*size, seed) for seed, size in enumerate(SIZES)]
    granted = granted_order(stage)
    call = await waiting_call(stage, items, len(items))
    gate.open()
    embeddings = await call
    await asyncio.gather(*calls)
    ticket_ids = [item.ticket.ticket_id for item in items]
    assert [ticket_id for ticket_id in granted if ticket_id in ticket_ids] == ticket_ids
    if max_batch_patches == 1:
        assert {embedding.batch_items for embedding in embeddings} == {1}
    for item in items:
        torch.testing.assert_close(await samples.fetch(item), samples.reference(item), atol=1e-5, rtol=0)


async def test_a_small_request_passes_the_later_pictures_of_a_large_one(make_stage: MakeStage) -> None:
    stage = await make_stage(max_batch_patches=1)
    samples = Samples(stage)
    gate, calls = await held_back(stage, samples)
    large = [samples.picture(56, 84, seed) for seed in range(3)]
    lone = samples.picture(56, 84, 9)
    granted = granted_order(stage)
    pending = [await waiting_call(stage, large, 3), await waiting_call(stage, [lone], 4)]
    # As if they had come in one moment; the ageing between them is a matter of the machine's speed otherwise.
    for item in stage._batcher._waiting:
        object.__setattr__(item.turn, "arrived", 0.0)
    gate.open()
    await asyncio.gather(*pending, *calls)
    place = granted.index(lone.ticket.ticket_id)
    assert granted.index(large[1].ticket.ticket_id) > place
    for item in [*large, lone]:
        await samples.fetch(item)


async def test_a_ticket_that_is_released_early_is_not_encoded(make_stage: MakeStage) -> None:
    """Its consumer found the KV pages; the others of the request go on."""
    stage = await make_stage(max_batch_patches=1)
    samples = Samples(stage)
    gate, calls = await held_back(stage, samples)
    items = [samples.picture(56, 84, seed) for seed in range(3)]
    call = await waiting_call(stage, items, 3)
    stage.leases.release([items[0].ticket.ticket_id, items[2].ticket.ticket_id])
    await until(async_condition(lambda: len(stage._batcher._waiting) == 1))
    gate.open()
    first, second, third = await call
    await asyncio.gather(*calls)
    assert first is None and third is None and second is not None
    assert stage.counters().encoded_items == 3, "the two before, and one"
    torch.testing.assert_close(await samples.fetch(items[1]), samples.reference(items[1]), atol=1e-5, rtol=0)


async def test_another_request_for_the_same_picture_still_gets_it(make_stage: MakeStage) -> None:
    stage = await make_stage(max_batch_patches=1)
    samples = Samples(stage)
    gate, calls = await held_back(stage, samples)
    released, kept = samples.picture(seed=1), samples.picture(seed=1)
    first = await waiting_call(stage, [released], 1)
    second = asyncio.create_task(stage.encode([kept], WAIT_S))
    await until(async_condition(lambda: stage.leases.counters().pending == 4))
    stage.leases.release([released.ticket.ticket_id])
    gate.open()
    assert await first == [None]
    await asyncio.gather(second, *calls)
    torch.testing.assert_close(await samples.fetch(kept), samples.reference(kept), atol=1e-5, rtol=0)
