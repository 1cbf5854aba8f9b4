"""What the stage refuses or fails, in whose terms, and what stays of it."""

import asyncio
from dataclasses import replace

import pytest
import torch
from encoder_samples import Gate, MakeStage, Samples

from encoder_service.stage import EncoderStage
from triptych.errors import (
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    RequestTooLarge,
    Unavailable,
)
from triptych.models.qwen2_5_vl.grid import Grid

WAIT_S = 30.0


async def test_a_broken_picture_fails_alone(make_stage: MakeStage) -> None:
    stage = await make_stage(batch_wait_ms=100)
    samples = Samples(stage)
    good = [samples.picture(seed=seed) for seed in range(3)]
    bad = samples.cut_off()
    results = await asyncio.gather(*(stage.encode([item], WAIT_S) for item in [*good, bad]), return_exceptions=True)
    error = results[3]
    assert isinstance(error, InvalidRequest) and error.field == "items[0].media.data"
    with pytest.raises(InvalidRequest, match="not a readable image"):
        await samples.fetch(bad)
    for item in good:
        torch.testing.assert_close(await samples.fetch(item), samples.reference(item), atol=1e-5, rtol=0)
    assert stage.counters().encoded_items == 3


async def test_within_a_request_good_items_are_handed_over_and_then_let_go(
    stage: EncoderStage, samples: Samples
) -> None:
    good, bad = samples.picture(), samples.cut_off()
    gate = Gate(stage)
    call = asyncio.create_task(stage.encode([good, bad], WAIT_S))
    fetch = asyncio.create_task(samples.fetch(good))
    with pytest.raises(InvalidRequest):
        await samples.fetch(bad)  # before the good one is ready
    gate.open()
    assert tuple((await fetch).shape) == good.ticket.shape
    with pytest.raises(InvalidRequest, match=r"items\[1\]\.media"):
        await call
    assert stage.leases.counters().held_leases == 0
    assert stage.counters().encoded_items == 1


async def test_unread_leases_of_a_failed_request_go_at_once(stage: EncoderStage, samples: Samples) -> None:
    good, bad = samples.picture(), samples.cut_off()
    with pytest.raises(InvalidRequest):
        await stage.encode([good, bad], WAIT_S)
    assert stage.leases.counters().held_leases == 0
    with pytest.raises(InvalidRequest):
        await samples.fetch(good)


async def test_shared_work_fails_each_in_its_own_terms(stage: EncoderStage, samples: Samples) -> None:
    first, second = samples.cut_off(), samples.cut_off()
    calls = stage.encode([first], WAIT_S), stage.encode([samples.picture(), second], WAIT_S)
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [error.field for error in errors] == ["items[0].media.data", "items[1].media.data"]  # type: ignore[union-attr]
    assert [str(error)[:19] for error in errors] == ["items[0].media.data", "items[1].media.data"]
    assert stage.counters().cache_hits == 1


async def test_grid_of_the_ticket_is_held_against_the_header(stage: EncoderStage, samples: Samples) -> None:
    item = samples.picture(56, 84)
    wrong = replace(item.ticket, grid=Grid(1, 4, 6))
    with pytest.raises(InvalidRequest, match=r"h=6, w=4.*expected.*h=4, w=6"):
        await stage.encode([replace(item, ticket=wrong)], WAIT_S)


async def test_content_key_is_held_against_the_content(stage: EncoderStage, samples: Samples) -> None:
    item = samples.picture()
    with pytest.raises(InvalidRequest, match="content key"):
        await stage.encode([replace(item, ticket=replace(item.ticket, content_key="other"))], WAIT_S)
    assert stage.counters().cache_items == 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_fingerprint": "other"}, FailedPrecondition, "'other'"),
        ({"producer_id": "encoder-before"}, Unavailable, "encoder-before, but this encoder is encoder-test"),
        ({"dtype": torch.bfloat16}, InvalidRequest, "bfloat16"),
        ({"shape": (6, 47)}, InvalidRequest, "[6, 47]"),
        ({"grid": None}, InvalidRequest, "None"),
        ({"grid": Grid(1, 5, 6)}, InvalidRequest, "multiples of 2"),
        ({"grid": Grid(0, 4, 6)}, InvalidRequest, ">= 1"),
        ({"content_key": ""}, InvalidRequest, "content_key"),
    ],
)
async def test_tickets_that_cannot_be(
    stage: EncoderStage, samples: Samples, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    item = samples.picture()
    bad = replace(item, ticket=replace(item.ticket, **changes))  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        await stage.encode([bad], WAIT_S)
    assert words in str(caught.value)
    with pytest.raises(error):
        await samples.fetch(bad)
    assert stage.counters().rejected_items == 1


async def test_requests_that_cannot_be(make_stage: MakeStage) -> None:
    stage = await make_stage(limits={"max_media_items": 2})
    samples = Samples(stage)
    item = samples.picture()
    with pytest.raises(InvalidRequest, match="at least one"):
        await stage.encode([], WAIT_S)
    with pytest.raises(InvalidRequest, match="same ticket_id"):
        await stage.encode([item, item], WAIT_S)
    with pytest.raises(RequestTooLarge, match=r"limits\.max_media_items"):
        await stage.encode([samples.picture(seed=seed) for seed in range(3)], WAIT_S)


async def test_a_full_stage_refuses_and_recovers(make_stage: MakeStage) -> None:
    stage = await make_stage(max_pending_patches=48)
    samples = Samples(stage)
    gate = Gate(stage)
    first = asyncio.create_task(stage.encode([samples.picture(seed=1), samples.picture(seed=2)], WAIT_S))
    await gate.wait_entered()
    refused = samples.picture(seed=3)
    with pytest.raises(Overloaded, match=r"stages\.encoder\.max_pending_patches") as caught:
        await stage.encode([refused], WAIT_S)
    assert caught.value.retry_after_s > 0
    with pytest.raises(Overloaded):
        await samples.fetch(refused)
    # What is in flight already costs nothing.
    again = asyncio.create_task(stage.encode([samples.picture(seed=1)], WAIT_S))
    gate.open()
    await asyncio.gather(first, again)
    with pytest.raises(RequestTooLarge, match=r"256 patches.*at most 48"):
        await stage.encode([samples.picture(224, 224)], WAIT_S)
    await stage.encode([samples.picture(seed=3)], WAIT_S)
    counters = stage.counters()
    assert (counters.accepted_items, counters.rejected_items, counters.pending_patches) == (4, 2, 0)
