"""What fails in a batch fails for itself alone, and a stage whose engine is lost says so."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from encoder_samples import MakeStage, Samples, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import Tensor

from encoder_service.actor import EncoderActor
from encoder_service.batching import BatchRoom
from encoder_service.media.loader import PackedPatches
from encoder_service.media.prepared import PreparedMedia
from encoder_service.stage import EncoderStage
from encoder_service.work import WaitingItem
from triptych.config import DeploymentConfig
from triptych.errors import DeadlineExceeded, InternalError, Overloaded, RequestTooLarge, Unavailable
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2

WAIT_S = 30.0
Encode = Callable[[Tensor, Sequence[Grid]], list[Tensor]]


class FaultyEngine:
    """The stage's own engine behind a check that may raise."""

    def __init__(self, stage: EncoderStage, check: Callable[[Sequence[Grid]], None]) -> None:
        self._engine = stage._runner._engine
        self._check = check
        self.device = self._engine.device
        self.calls: list[int] = []
        stage._runner._engine = self  # type: ignore[assignment]

    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        self.calls.append(len(grids))
        self._check(grids)
        return self._engine.encode(patches, grids)


def replace_pack(stage: EncoderStage, pack: Callable[[Any, Sequence[PreparedMedia]], PackedPatches]) -> None:
    loader = stage._runner._loader
    own = loader.pack
    loader.pack = lambda media: pack(own, media)  # type: ignore[method-assign]


async def encode_all(stage: EncoderStage, samples: Samples, widths: Sequence[int]) -> list[Any]:
    """Each picture by a request of its own; embeddings are checked, errors answered."""
    items = [samples.picture(width, 84, seed) for seed, width in enumerate(widths)]
    calls = (stage.encode([item], WAIT_S) for item in items)
    results = await asyncio.gather(*calls, return_exceptions=True)
    for item, result in zip(items, results, strict=True):
        if not isinstance(result, BaseException):
            torch.testing.assert_close(await samples.fetch(item), samples.reference(item), atol=1e-5, rtol=0)
    assert stage.counters().pending_patches == 0 and stage.counters().activation_bytes == 0
    return results


async def batching_stage(make_stage: MakeStage) -> EncoderStage:
    """Six small pictures make one batch."""
    return await make_stage(batch_wait_ms=5_000, max_batch_patches=6 * 24, cache_bytes=0)


async def test_an_item_that_the_engine_fails_on_fails_alone(make_stage: MakeStage) -> None:
    stage = await batching_stage(make_stage)
    samples = Samples(stage)

    def check(grids: Sequence[Grid]) -> None:
        if Grid(1, 6, 2) in grids:
            raise RuntimeError("this one breaks")

    engine = FaultyEngine(stage, check)
    results = await encode_all(stage, samples, [56, 56, 28, 56, 56, 84])
    assert [type(result) for result in results] == [list, list, InternalError, list, list, list]
    assert sorted(engine.calls) == [1] * 6 + [6]


async def test_a_batch_too_large_for_memory_is_halved(make_stage: MakeStage) -> None:
    stage = await batching_stage(make_stage)
    samples = Samples(stage)

    def check(grids: Sequence[Grid]) -> None:
        if len(grids) > 2:
            raise torch.OutOfMemoryError("out of memory")

    engine = FaultyEngine(stage, check)
    results = await encode_all(stage, samples, [56] * 6)
    assert all(isinstance(result, list) for result in results)
    assert engine.calls == [6, 3, 1, 2, 3, 1, 2]


async def test_one_item_too_large_for_memory_is_told_to_come_again(make_stage: MakeStage) -> None:
    stage = await batching_stage(make_stage)

    def check(grids: Sequence[Grid]) -> None:
        if Grid(1, 6, 6) in grids:
            raise torch.OutOfMemoryError("out of memory")

    FaultyEngine(stage, check)
    results = await encode_all(stage, Samples(stage), [56, 56, 56, 56, 28, 84])
    assert isinstance(results[5], Overloaded) and results[5].field == "stages.encoder.activation_bytes"
    assert all(isinstance(result, list) for result in results[:5])


async def test_a_pack_that_raises_is_tried_in_parts(make_stage: MakeStage) -> None:
    stage = await batching_stage(make_stage)

    def pack(own: Any, media: Sequence[PreparedMedia]) -> PackedPatches:
        if any(item.grid == Grid(1, 6, 2) for item in media):
            raise RuntimeError("this one can't be packed")
        return own(media)

    replace_pack(stage, pack)
    results = await encode_all(stage, Samples(stage), [56, 56, 28, 56, 56, 84])
    assert [type(result) for result in results] == [list, list, InternalError, list, list, list]


async def test_an_error_of_the_pack_leaves_before_the_others_are_encoded(make_stage: MakeStage) -> None:
    stage = await batching_stage(make_stage)
    samples = Samples(stage)
    good, bad = [samples.picture(56, 84, seed) for seed in range(5)], samples.picture(84, 56, 9)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    order: list[str] = []

    def pack(own: Any, media: Sequence[PreparedMedia]) -> PackedPatches:
        others = [item for item in media if item.grid != bad.ticket.grid]
        packed = own(others)
        errors = [InternalError("broken", field="media") if item.grid == bad.ticket.grid else None for item in media]
        return PackedPatches(packed.patches, tuple(errors), None)

    def check(grids: Sequence[Grid]) -> None:
        asyncio.run_coroutine_threadsafe(told.wait(), loop).result(10)
        order.append("encoded")

    replace_pack(stage, pack)
    FaultyEngine(stage, check)

    async def fail() -> None:
        with pytest.raises(InternalError, match="broken"):
            await stage.encode([bad], WAIT_S)
        order.append("told")
        told.set()

    await asyncio.gather(fail(), *(stage.encode([item], WAIT_S) for item in good))
    assert order == ["told", "encoded"]
    for item in good:
        torch.testing.assert_close(await samples.fetch(item), samples.reference(item), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["raises", "chooses nothing"])
async def test_a_policy_that_fails_costs_what_it_was_to_judge(make_stage: MakeStage, kind: str) -> None:
    stage = await make_stage()
    settings = stage._batcher._settings

    def broken(waiting: Sequence[WaitingItem], room: BatchRoom) -> list[WaitingItem]:
        if kind == "raises":
            raise KeyError("no such priority")
        return []

    object.__setattr__(settings, "policy", broken)
    with pytest.raises(InternalError, match="the batch policy failed"):
        await stage.encode([Samples(stage).picture()], WAIT_S)
    object.__setattr__(settings, "policy", lambda waiting, room: list(waiting))
    assert stage.is_alive
    assert len(await encode_all(stage, Samples(stage), [56])) == 1


async def test_an_accelerator_error_ends_the_stage(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    class LostDevice(RuntimeError):
        """As torch raises it."""

    monkeypatch.setattr(torch, "AcceleratorError", LostDevice, raising=False)
    stage = await make_stage()

    def check(grids: Sequence[Grid]) -> None:
        raise LostDevice("an illegal memory access was encountered")

    FaultyEngine(stage, check)
    with pytest.raises(Unavailable, match="the GPU failed: an illegal memory access"):
        await stage.encode([Samples(stage).picture()], WAIT_S)
    await asyncio.wait_for(stage.wait_ended(), 5)
    with pytest.raises(Unavailable, match="has ended"):
        await stage.encode([Samples(stage).picture()], WAIT_S)


async def test_the_actor_of_a_dead_loop_is_not_healthy(make_config: Callable[..., DeploymentConfig]) -> None:
    """Ended by a bug that nothing foresaw."""
    actor = EncoderActor(make_config())
    info = admin_pb2.ActorInfo.FromString(await actor.start())
    channels = ChannelPool(1 << 20)
    health = health_pb2_grpc.HealthStub(channels.get(info.endpoint))
    request = health_pb2.HealthCheckRequest(service="triptych.v1.EncoderService")
    try:
        assert await actor.ping() == info.actor_id
        stage = actor._stage
        assert stage is not None and stage._batcher._loop_task is not None
        stage._batcher._loop_task.cancel()

        async def is_down() -> bool:
            return (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING

        await until(is_down)
        with pytest.raises(Unavailable, match="has ended"):
            await actor.ping()
    finally:
        await channels.close()
        await actor.stop()


async def test_what_never_fits_into_memory_is_refused(make_stage: MakeStage) -> None:
    stage = await make_stage(activation_bytes=1 << 20)
    with pytest.raises(RequestTooLarge, match=r"items\[0\]\.media with 256 patches.*stages\.encoder\.activation_bytes"):
        await stage.encode([Samples(stage).picture(224, 224)], WAIT_S)
    await stage.encode([Samples(stage).picture(28, 28)], WAIT_S)
    assert stage.counters().rejected_items == 1


async def test_items_whose_time_ran_out_are_dropped_before_work(make_stage: MakeStage) -> None:
    stage = await make_stage(batch_wait_ms=60_000)
    item = Samples(stage).picture()
    with pytest.raises(DeadlineExceeded):
        async with asyncio.timeout(10):
            call = asyncio.create_task(stage.encode([item], 0.05))
            await asyncio.sleep(0.06)
            stage._batcher._changed.set()
            await call
    counters = stage.counters()
    assert (counters.expired_items, counters.encoded_items, counters.pending_patches) == (1, 0, 0)
