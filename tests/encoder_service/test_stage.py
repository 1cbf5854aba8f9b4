"""The stage as a whole, without its network side."""

import asyncio
import random
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from encoder_samples import MakeStage, Samples, async_condition, frames_media, image_media, until, video_media
from media_samples import encoded, oriented, picture, video
from torch import Tensor

from encoder_service.stage import EncoderStage
from triptych.errors import (
    Cancelled,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    RequestTooLarge,
    Unavailable,
)
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.v1 import common_pb2

WAIT_S = 30.0


class Gate:
    """Holds a stage's engine back until it is opened, and says when it is at work."""

    def __init__(self, stage: EncoderStage) -> None:
        self._engine, self.device = stage._runner._engine, stage._runner._engine.device
        self._open = threading.Event()
        self.entered = threading.Event()
        stage._runner._engine = self  # type: ignore[assignment]

    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        self.entered.set()
        assert self._open.wait(20)
        return self._engine.encode(patches, grids)

    def open(self) -> None:
        self._open.set()

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 10)


async def test_a_picture_is_encoded_and_held_until_released(stage: EncoderStage, samples: Samples) -> None:
    item = samples.picture()
    (embedding,) = await stage.encode([item], WAIT_S)
    assert not embedding.is_cache_hit and embedding.batch_items == 1
    assert embedding.preprocess_s > 0 and embedding.encode_s > 0
    assert stage.leases.counters().held_leases == 1
    torch.testing.assert_close(await samples.fetch(item), samples.reference(item), atol=1e-6, rtol=0)
    assert stage.leases.counters().held_leases == 0
    counters = stage.counters()
    assert (counters.accepted_items, counters.encoded_items, counters.num_batches) == (1, 1, 1)
    assert counters.encoded_patches == item.ticket.grid.num_patches  # type: ignore[union-attr]
    assert counters.pending_patches == 0


async def test_concurrent_requests_share_one_forward(make_stage: MakeStage) -> None:
    stage = await make_stage(batch_wait_ms=5_000, max_batch_patches=24 * 4)
    samples = Samples(stage)
    items = [samples.picture(56, 84, seed) for seed in range(4)]
    results = await asyncio.gather(*(stage.encode([item], WAIT_S) for item in items))
    assert stage.counters().num_batches == 1
    assert [embedding.batch_items for (embedding,) in results] == [4, 4, 4, 4]
    for item in items:
        torch.testing.assert_close(await samples.fetch(item), samples.reference(item), atol=1e-5, rtol=0)


async def test_an_embedding_of_a_batch_owns_its_memory(make_stage: MakeStage) -> None:
    stage = await make_stage(batch_wait_ms=5_000, max_batch_patches=24 + 256)
    samples = Samples(stage)
    items = [samples.picture(56, 84), samples.picture(224, 224)]
    embeddings = await stage.encode(items, WAIT_S)
    assert [embedding.tensor.untyped_storage().nbytes() for embedding in embeddings] == [
        embedding.tensor.nbytes for embedding in embeddings
    ]
    for item in items:
        await samples.fetch(item)


async def test_batches_are_bounded(make_stage: MakeStage) -> None:
    stage = await make_stage(batch_wait_ms=50, max_batch_patches=50, media_workers=1)
    samples = Samples(stage)
    items = [samples.picture(56, 84, seed) for seed in range(5)]  # 24 patches each: two fit
    embeddings = await stage.encode(items, WAIT_S)
    assert max(embedding.batch_items for embedding in embeddings) <= 2
    assert stage.counters().num_batches >= 3
    # An item larger than a batch goes alone.
    (embedding,) = await stage.encode([samples.picture(224, 224)], WAIT_S)
    assert embedding.batch_items == 1


async def test_a_lone_item_waits_no_longer_than_it_must(make_stage: MakeStage) -> None:
    stage = await make_stage(batch_wait_ms=30)
    started = asyncio.get_running_loop().time()
    (embedding,) = await stage.encode([Samples(stage).picture()], WAIT_S)
    assert embedding.queue_s >= 0.03 and asyncio.get_running_loop().time() - started < 2


@pytest.mark.parametrize("rate", [0.0, 8.0])
async def test_video_as_frames(stage: EncoderStage, samples: Samples, rate: float) -> None:
    item = samples.item(frames_media([encoded(picture(60, 90, seed=seed)) for seed in range(7)], rate))
    assert item.ticket.grid is not None and item.ticket.grid.t == (4 if rate == 0 else 2)
    await stage.encode([item], WAIT_S)
    assert tuple((await samples.fetch(item)).shape) == item.ticket.shape


async def test_video_file_step_by_step_equals_all_at_once(stage: EncoderStage, samples: Samples) -> None:
    from encoder_service.media import decode_video
    from triptych.config import LimitsSection

    data = video(15, 64, 90, 5)
    item = samples.item(video_media(data))
    await stage.encode([item], WAIT_S)
    processing = stage._preparation._loader._processing.video
    indices = processing.sample_frames(15, 5.0)
    patches = processing.patchify(torch.cat(list(decode_video(data, indices, LimitsSection(), "video"))))
    with torch.inference_mode():
        expected = stage._engine._tower(patches, [item.ticket.grid])  # type: ignore[attr-defined]
    torch.testing.assert_close(await samples.fetch(item), expected, atol=1e-5, rtol=0)


async def test_options_change_the_grid_and_the_content(stage: EncoderStage, samples: Samples) -> None:
    media = image_media(encoded(picture(112, 112)))
    small = common_pb2.Media()
    small.CopyFrom(media)
    small.options.max_pixels = 56 * 56
    items = [samples.item(media), samples.item(small)]
    await stage.encode(items, WAIT_S)
    assert [item.ticket.grid for item in items] == [Grid(1, 8, 8), Grid(1, 4, 4)]
    assert stage.counters().cache_hits == 0
    for item in items:
        assert tuple((await samples.fetch(item)).shape) == item.ticket.shape


async def test_the_same_picture_again_comes_from_the_cache(stage: EncoderStage, samples: Samples) -> None:
    first, second = samples.picture(), samples.picture()
    await stage.encode([first], WAIT_S)
    (embedding,) = await stage.encode([second], WAIT_S)
    assert embedding.is_cache_hit and embedding.encode_s == 0
    assert torch.equal(await samples.fetch(first), await samples.fetch(second))
    counters = stage.counters()
    assert (counters.accepted_items, counters.encoded_items, counters.cache_hits) == (2, 1, 1)
    assert (counters.cache_items, counters.cache_bytes) == (1, embedding.tensor.nbytes)


async def test_the_same_picture_at_the_same_time_is_encoded_once(make_stage: MakeStage) -> None:
    stage = await make_stage(cache_bytes=0, batch_wait_ms=50)
    samples = Samples(stage)
    items = [samples.picture() for _ in range(6)]
    results = await asyncio.gather(*(stage.encode(items[i : i + 2], WAIT_S) for i in range(0, 6, 2)))
    hits = [embedding.is_cache_hit for embeddings in results for embedding in embeddings]
    assert hits == [False, *[True] * 5]
    counters = stage.counters()
    assert (counters.accepted_items, counters.encoded_items, counters.cache_hits) == (6, 1, 5)
    leases = stage.leases.counters()
    assert leases.held_leases == 6 and leases.held_bytes == results[0][0].tensor.nbytes
    for item in items:
        await samples.fetch(item)
    await stage.encode([items[0]], WAIT_S)  # cache off, tickets used up
    assert stage.counters().encoded_items == 2


async def test_an_evicted_embedding_lives_as_long_as_its_lease(make_stage: MakeStage) -> None:
    stage = await make_stage(cache_bytes=6 * 48 * 4)  # one embedding of 6 tokens
    samples = Samples(stage)
    first, second = samples.picture(seed=1), samples.picture(seed=2)
    await stage.encode([first], WAIT_S)
    await stage.encode([second], WAIT_S)
    assert stage.counters().cache_items == 1
    for item in (first, second):
        torch.testing.assert_close(await samples.fetch(item), samples.reference(item), atol=1e-5, rtol=0)


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


async def test_embed_in_process_needs_no_ticket(stage: EncoderStage, samples: Samples) -> None:
    items = [samples.picture(seed=1), samples.picture(seed=2)]
    embeddings = await stage.embed([samples.media_item(item) for item in items])
    for item, embedding in zip(items, embeddings, strict=True):
        torch.testing.assert_close(embedding.tensor, samples.reference(item), atol=1e-5, rtol=0)
    assert stage.leases.counters().granted == 0
    assert stage.counters().accepted_items == 2


async def test_weights_are_those_of_the_tower(stage: EncoderStage) -> None:
    weights = stage.weights()
    expected = sum(parameter.numel() for parameter in stage._engine._tower.parameters())  # type: ignore[attr-defined]
    assert weights.num_visual_parameters == expected > 0
    assert weights.num_language_parameters == 0
    assert weights.num_bytes == expected * 4


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
