"""Items to encode, with tickets as a router would write them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from media_samples import encoded, picture
from torch import Tensor

from encoder_service.items import EncodeItem, MediaItem
from encoder_service.stage import EncoderStage
from encoder_service.tickets import ProducedTensors
from triptych.config import LimitsSection
from triptych.media import content_key
from triptych.media.layout import MediaProcessing, media_layout
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.transport.ticket import Ticket, new_id
from triptych.v1 import common_pb2


class MakeStage(Protocol):
    def __call__(self, **values: Any) -> Awaitable[EncoderStage]: ...


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Polls what can only be asked for, such as a running actor's counters."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def async_condition(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return condition()

    return ask


def image_media(data: bytes) -> common_pb2.Media:
    return common_pb2.Media(kind=common_pb2.MEDIA_KIND_IMAGE, data=data)


def video_media(data: bytes) -> common_pb2.Media:
    return common_pb2.Media(kind=common_pb2.MEDIA_KIND_VIDEO, data=data)


def frames_media(frames: list[bytes], rate: float = 0.0) -> common_pb2.Media:
    return common_pb2.Media(
        kind=common_pb2.MEDIA_KIND_VIDEO,
        frames=common_pb2.VideoFrames(frames=frames, frames_per_second=rate),
    )


def ticket_for(
    media: common_pb2.Media,
    produced: ProducedTensors,
    processing: MediaProcessing,
    endpoint: str = "127.0.0.1:1",
    host: str = "",
    lanes: tuple[str, ...] = ("shm", "grpc"),
) -> Ticket:
    grid = media_layout(media, processing, LimitsSection(), "media").grid
    spec = produced.spec(grid)
    return Ticket(
        ticket_id=new_id(),
        producer_id=produced.producer_id,
        producer_endpoint=endpoint,
        producer_host_id=host,
        model_fingerprint=produced.model_fingerprint,
        dtype=spec.dtype,
        shape=spec.shape,
        lanes=lanes,
        content_key=content_key(media),
        grid=grid,
    )


class Gate:
    """Holds a stage's engine back until it is opened, and says when it is at work."""

    def __init__(self, stage: EncoderStage) -> None:
        self._engine, self.device = stage._runner._engine, stage._runner._engine.device
        self._open = threading.Semaphore(0)
        self._is_open = False
        self.entered = threading.Event()
        stage._runner._engine = self  # type: ignore[assignment]

    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        self.entered.set()
        assert self._is_open or self._open.acquire(timeout=20)
        return self._engine.encode(patches, grids)

    def open(self) -> None:
        self._is_open = True
        self._open.release()

    def let_one_through(self) -> None:
        self._open.release()

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 10)


class Samples:
    """Builds items for a stage."""

    def __init__(self, stage: EncoderStage) -> None:
        self._stage = stage
        self._processing = stage._preparation._loader._processing

    def item(self, media: common_pb2.Media, **changes: Any) -> EncodeItem:
        ticket = ticket_for(media, self._stage.produced, self._processing)
        return EncodeItem(replace(ticket, **changes), media)

    def picture(self, width: int = 56, height: int = 84, seed: int = 0, image_format: str = "PNG") -> EncodeItem:
        return self.item(image_media(encoded(picture(width, height, seed=seed), image_format)))

    def cut_off(self, seed: int = 0) -> EncodeItem:
        """A JPEG whose header is whole and whose pixels are not."""
        data = encoded(picture(200, 200, seed=seed), "JPEG")
        return self.item(image_media(data[: len(data) // 2]))

    async def fetch(self, item: EncodeItem) -> Tensor:
        """What a consumer reads; releases."""
        lease = await self._stage.leases.pin(item.ticket.ticket_id, 5.0)
        tensor = lease.tensor.clone()
        self._stage.leases.unpin(lease)
        self._stage.leases.release([item.ticket.ticket_id])
        return tensor

    def media_item(self, item: EncodeItem) -> MediaItem:
        assert item.ticket.grid is not None
        return MediaItem(item.ticket.content_key, item.ticket.grid, item.media, "media")

    def reference(self, item: EncodeItem) -> Tensor:
        """The embedding computed by hand, alone."""
        from encoder_service.media import prepare_patches

        patches = prepare_patches(self.media_item(item), self._processing, LimitsSection())
        grid: Grid | None = item.ticket.grid
        assert grid is not None
        with torch.inference_mode():
            return self._stage._engine._tower(patches, [grid])  # type: ignore[attr-defined]
