"""The stage as a whole, without its network side: embeddings, batches, cache."""

import asyncio

import pytest
import torch
from encoder_samples import Gate, MakeStage, Samples, frames_media, image_media, video_media
from media_samples import encoded, picture, video

from encoder_service.stage import EncoderStage
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.v1 import common_pb2

WAIT_S = 30.0


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


async def test_a_picture_leaves_when_its_own_batch_is_done(make_stage: MakeStage) -> None:
    stage = await make_stage(max_batch_patches=24)
    samples = Samples(stage)
    gate = Gate(stage)
    first, second = samples.picture(seed=1), samples.picture(seed=2)  # 24 patches each: two batches
    call = asyncio.create_task(stage.encode([first, second], WAIT_S))
    await gate.wait_entered()
    gate.let_one_through()
    # Whichever was prepared first.
    fetches = {asyncio.create_task(samples.fetch(item)): item for item in (first, second)}
    (done,), (waiting,) = await asyncio.wait(fetches, return_when=asyncio.FIRST_COMPLETED)
    torch.testing.assert_close(done.result(), samples.reference(fetches[done]), atol=1e-5, rtol=0)
    assert not call.done() and stage.counters().num_batches == 1
    gate.open()
    await call
    assert tuple((await waiting).shape) == fetches[waiting].ticket.shape


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
    await stage.encode([samples.picture()], WAIT_S)  # cache off, and all who waited were answered
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
