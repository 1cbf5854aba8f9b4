"""The actor as other processes see it: over gRPC, with its tensors fetched over real lanes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from encoder_samples import frames_media, image_media, ticket_for, until, video_media
from grpc_health.v1 import health_pb2, health_pb2_grpc
from media_samples import encoded, picture, video
from torch import Tensor

from encoder_service.actor import EncoderActor
from encoder_service.items import MediaItem
from encoder_service.media import prepare_patches
from encoder_service.tickets import ProducedTensors
from triptych.config import DeploymentConfig, LimitsSection
from triptych.errors import (
    ConfigurationError,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    TriptychError,
    Unavailable,
)
from triptych.media.layout import MediaProcessing
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.weights import load_language_model, load_vision_tower, model_fingerprint
from triptych.rpc.channels import ChannelPool
from triptych.rpc.status import from_rpc_error
from triptych.transport.fetcher import FetchedTensor, TensorFetcher
from triptych.transport.host import host_id
from triptych.transport.ticket import Ticket
from triptych.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    encoder_pb2,
    encoder_pb2_grpc,
)

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Caller:
    """An actor, and what a router and a prefill actor do with it."""

    actor: EncoderActor
    info: admin_pb2.ActorInfo
    config: DeploymentConfig
    channels: ChannelPool
    processing: MediaProcessing
    produced: ProducedTensors

    def ticket(self, media: common_pb2.Media, **changes: Any) -> Ticket:
        lanes = tuple(self.info.lanes)
        ticket = ticket_for(media, self.produced, self.processing, self.info.endpoint, self.info.host_id, lanes)
        return replace(ticket, **changes)

    async def encode(
        self, *items: tuple[Ticket, common_pb2.Media], timeout: float = 20.0
    ) -> list[encoder_pb2.EncodeResult]:
        request = encoder_pb2.EncodeRequest(
            request_id="request",
            items=[encoder_pb2.EncodeItem(ticket=ticket.to_proto(), media=media) for ticket, media in items],
        )
        stub = encoder_pb2_grpc.EncoderServiceStub(self.channels.get(self.info.endpoint))
        try:
            return list((await stub.Encode(request, timeout=timeout)).results)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def fetch(self, ticket: Ticket, lane: str = "", timeout: float = 10.0) -> FetchedTensor:
        transport = self.config.transport
        if lane:
            transport = transport.model_copy(update={"lanes": (lane,)})
        fetcher = TensorFetcher(self.channels, "prefill-test", host_id(), transport, self.info.model_fingerprint)
        try:
            return await fetcher.fetch(ticket, timeout_s=timeout)
        finally:
            await fetcher.close()  # the release has arrived

    async def describe(self, actor_id: str = "") -> admin_pb2.ActorInfo:
        stub = admin_pb2_grpc.AdminServiceStub(self.channels.get(self.info.endpoint))
        try:
            return (await stub.GetActorInfo(admin_pb2.GetActorInfoRequest(actor_id=actor_id))).info
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def until(self, condition: Callable[[admin_pb2.ActorInfo], bool], timeout_s: float = 10.0) -> None:
        async def ask() -> bool:
            return condition(await self.describe())

        await until(ask, timeout_s)

    async def health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self.channels.get(self.info.endpoint))
        request = health_pb2.HealthCheckRequest(service="triptych.v1.EncoderService")
        return int((await stub.Check(request)).status)

    def reference(self, ticket: Ticket, media: common_pb2.Media, tower: Any) -> Tensor:
        assert ticket.grid is not None
        item = MediaItem(ticket.content_key, ticket.grid, media, "media")
        with torch.inference_mode():
            embedding: Tensor = tower(prepare_patches(item, self.processing, LimitsSection()), [ticket.grid])
        return embedding


StartCaller = Callable[..., Any]


@pytest.fixture
async def start_caller(make_config: Callable[..., DeploymentConfig], checkpoint: Path) -> AsyncIterator[StartCaller]:
    """Started actors; at the end each must have drained to nothing."""
    callers: list[Caller] = []
    num_threads = torch.get_num_threads()

    async def start(**values: Any) -> Caller:
        config = make_config(**values)
        actor = EncoderActor(config)
        info = admin_pb2.ActorInfo.FromString(await actor.start())
        model = ModelConfig.from_folder(checkpoint)
        produced = ProducedTensors(
            info.actor_id,
            info.model_fingerprint,
            torch.float32,
            model.vision.out_hidden_size,
            model.vision.spatial_merge_size,
            model.vision.patch_dim,
        )
        channels = ChannelPool(config.limits.max_message_bytes)
        caller = Caller(actor, info, config, channels, MediaProcessing.from_folder(checkpoint), produced)
        callers.append(caller)
        return caller

    yield start
    for caller in callers:
        await caller.channels.close()
        await caller.actor.stop()
        assert not os.path.exists(f"/dev/shm/triptych-{caller.info.actor_id}")  # noqa: ASYNC240
    torch.set_num_threads(num_threads)


@pytest.fixture
async def caller(start_caller: StartCaller) -> Caller:
    started: Caller = await start_caller()
    return started


@pytest.fixture(scope="session")
def tower(checkpoint: Path) -> Any:
    return load_vision_tower(checkpoint, ModelConfig.from_folder(checkpoint), torch.float32, torch.device("cpu"))


async def test_what_an_actor_says_of_itself(caller: Caller, checkpoint: Path, tower: Any) -> None:
    info = caller.info
    assert info.stage == common_pb2.STAGE_ENCODER and info.state == admin_pb2.ACTOR_STATE_READY
    assert info.model_fingerprint == model_fingerprint(checkpoint)
    assert info.dtype == common_pb2.DATA_TYPE_FLOAT32
    assert info.host_id == host_id() and list(info.lanes) == ["shm", "grpc"]
    assert info.weights.num_visual_parameters == sum(parameter.numel() for parameter in tower.parameters())
    assert info.weights.num_language_parameters == 0
    assert info.actor_id.startswith("encoder-") and await caller.actor.ping() == info.actor_id
    assert await caller.describe() == await caller.describe(info.actor_id)
    assert (await caller.describe()).endpoint == info.endpoint
    assert await caller.health() == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(NotFound, match=info.actor_id):
        await caller.describe("encoder-other")


@pytest.mark.parametrize("lane", ["shm", "grpc"])
async def test_embeddings_over_a_lane(caller: Caller, tower: Any, lane: str) -> None:
    """Fetched before they exist, as a prefill actor does."""
    medias = [
        image_media(encoded(picture(90, 60), "JPEG")),
        image_media(encoded(picture(1, 1))),
        video_media(video(9, 64, 90, 4)),
        frames_media([encoded(picture(60, 60, seed=seed)) for seed in range(4)]),
    ]
    tickets = [caller.ticket(media) for media in medias]
    fetches = [asyncio.create_task(caller.fetch(ticket, lane)) for ticket in tickets]
    await asyncio.sleep(0.01)
    results = await caller.encode(*zip(tickets, medias, strict=True))
    assert [result.ticket_id for result in results] == [ticket.ticket_id for ticket in tickets]
    for ticket, media, fetch in zip(tickets, medias, fetches, strict=True):
        fetched = await fetch
        assert fetched.lane == lane
        torch.testing.assert_close(fetched.tensor, caller.reference(ticket, media, tower), atol=1e-5, rtol=0)
    info = await caller.describe()
    assert (info.encoder.accepted_items, info.encoder.encoded_items) == (4, 4)
    assert (info.leases.granted_leases, info.leases.held_leases, info.leases.pending_tickets) == (4, 0, 0)


async def test_a_broken_picture_reaches_caller_and_consumer(caller: Caller) -> None:
    data = encoded(picture(200, 200), "JPEG")
    media = image_media(data[: len(data) // 2])
    ticket = caller.ticket(media)
    fetch = asyncio.create_task(caller.fetch(ticket))
    with pytest.raises(InvalidRequest, match="not a readable image") as caught:
        await caller.encode((ticket, media))
    assert caught.value.field == "items[0].media.data"
    with pytest.raises(InvalidRequest, match="not a readable image"):
        await fetch
    good = image_media(data)
    ticket = caller.ticket(good)
    await caller.encode((ticket, good))
    await caller.fetch(ticket)


async def test_tickets_of_other_weights_and_incarnations(caller: Caller) -> None:
    media = image_media(encoded(picture(56, 56)))
    with pytest.raises(FailedPrecondition, match=f"'0123'.*'{caller.info.model_fingerprint}'"):
        await caller.encode((caller.ticket(media, model_fingerprint="0123"), media))
    with pytest.raises(Unavailable, match="encoder-before"):
        await caller.encode((caller.ticket(media, producer_id="encoder-before"), media))
    with pytest.raises(InvalidRequest, match="at least one"):
        await caller.encode()
    assert (await caller.describe()).encoder.rejected_items == 2


async def test_overload_brings_retry_advice(start_caller: StartCaller) -> None:
    caller = await start_caller(max_pending_patches=24, batch_wait_ms=300)
    first, second = (image_media(encoded(picture(56, 84, seed=seed))) for seed in range(2))
    ticket = caller.ticket(first)
    running = asyncio.create_task(caller.encode((ticket, first)))
    await caller.until(lambda info: info.encoder.pending_patches > 0)
    with pytest.raises(Overloaded, match=r"stages\.encoder\.max_pending_patches") as caught:
        await caller.encode((caller.ticket(second), second))
    assert caught.value.retry_after_s > 0
    await running
    await caller.fetch(ticket)


async def test_a_deadline_drops_the_work(start_caller: StartCaller) -> None:
    caller = await start_caller(batch_wait_ms=2_000)
    media = image_media(encoded(picture(56, 84)))
    ticket = caller.ticket(media)
    fetch = asyncio.create_task(caller.fetch(ticket))
    with pytest.raises(TriptychError):
        await caller.encode((ticket, media), timeout=0.2)
    with pytest.raises(TriptychError, match="cancelled or its deadline"):
        await fetch
    # Before the batch would have begun.
    await caller.until(lambda info: not info.encoder.pending_patches and not info.leases.pending_tickets, 1.0)
    assert (await caller.describe()).encoder.encoded_items == 0


async def test_a_cancelled_call_lets_go_of_what_nobody_reads(caller: Caller) -> None:
    media = image_media(encoded(picture(56, 84)))
    await caller.encode((caller.ticket(media), media))
    assert (await caller.describe()).leases.held_leases == 1
    # A second picture keeps the call alive while the first is granted from the cache.
    slow = video_media(video(400, 320, 320, 10))
    tickets = [caller.ticket(media), caller.ticket(slow)]
    call = asyncio.create_task(caller.encode((tickets[0], media), (tickets[1], slow)))
    await caller.until(lambda info: info.leases.held_leases == 2)
    assert not call.done()
    call.cancel()
    await caller.until(lambda info: info.leases.held_leases == 1 and not info.encoder.pending_patches)
    assert (await caller.describe()).leases.pending_tickets == 0


async def test_drain_finishes_and_refuses(start_caller: StartCaller) -> None:
    caller = await start_caller(batch_wait_ms=200)
    media = image_media(encoded(picture(56, 84)))
    ticket = caller.ticket(media)
    call = asyncio.create_task(caller.encode((ticket, media)))
    await caller.until(lambda info: info.encoder.accepted_items > 0)
    drain = asyncio.create_task(caller.actor.drain(10))
    await caller.until(lambda info: info.state == admin_pb2.ACTOR_STATE_DRAINING)
    assert await caller.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(Unavailable, match="takes no new work"):
        await caller.encode((caller.ticket(media), media))
    await call
    assert not drain.done()
    await caller.fetch(ticket)
    assert await drain


async def test_stop_ends_calls_and_may_be_called_twice(start_caller: StartCaller) -> None:
    caller = await start_caller(batch_wait_ms=5_000)
    media = image_media(encoded(picture(56, 84)))
    ticket = caller.ticket(media)
    call = asyncio.create_task(caller.encode((ticket, media)))
    fetch = asyncio.create_task(caller.fetch(ticket))
    await caller.until(lambda info: info.encoder.accepted_items > 0)
    await asyncio.gather(caller.actor.stop(), caller.actor.stop())
    for task in (call, fetch):
        with pytest.raises(Unavailable):
            await task


async def test_a_start_that_fails_leaves_nothing(make_config: Callable[..., DeploymentConfig]) -> None:
    actor = EncoderActor(make_config(engine="abacus"))
    with pytest.raises(ConfigurationError, match=r"stages\.encoder\.engine is 'abacus', expected one of .*torch"):
        await actor.start()
    with pytest.raises(Unavailable, match="not started"):
        await actor.drain(0.1)
    await actor.stop()


async def test_thread_count_is_the_configured_one(start_caller: StartCaller) -> None:
    await start_caller(num_threads=2)
    assert torch.get_num_threads() == 2
    await start_caller(num_threads=1)
    assert torch.get_num_threads() == 1


LONE_PROCESS = """
import asyncio, sys
from encoder_service.actor import EncoderActor
from triptych.config import DeploymentConfig

async def main():
    actor = EncoderActor(DeploymentConfig.model_validate({"model": {"path": sys.argv[1], "device": "cpu"}}))
    await actor.start()
    await actor.stop()

asyncio.run(main())
unwanted = {"transformers", "tokenizers", "ray", "av", "router", "llm_service"}
print(sorted(unwanted & sys.modules.keys()))
"""


def test_an_actor_imports_no_more_than_it_needs(checkpoint: Path) -> None:
    """No transformers: its import alone takes seconds and hundreds of megabytes."""
    result = subprocess.run(
        [sys.executable, "-c", LONE_PROCESS, str(checkpoint)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


async def test_only_visual_weights_are_read(
    caller: Caller, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, start_caller: StartCaller
) -> None:
    from triptych.models.qwen2_5_vl.checkpoint import CheckpointTensor

    names: list[str] = []
    read = CheckpointTensor.read

    def recording(self: CheckpointTensor) -> Tensor:
        names.append(self._name)
        return read(self)

    monkeypatch.setattr(CheckpointTensor, "read", recording)
    await start_caller()
    assert names and all("visual." in name for name in names)
    names.clear()
    model = ModelConfig.from_folder(checkpoint)
    load_language_model(checkpoint, model, torch.float32, torch.device("cpu"))
    assert names and not any("visual." in name for name in names)
