"""An item between its preparation and its embedding."""

import asyncio
import math
import time
from dataclasses import dataclass, field

from torch import Tensor

from encoder_service.media.prepared import DecodedFrames, EncodedJpeg, PreparedMedia
from triptych.models.qwen2_5_vl.grid import Grid


class WorkDeadline:
    """Until when work is wanted, on the monotonic clock, by several who wait for it.

    `first` is when the most pressed of them wants it, `last` when nobody does any more.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.first = deadline
        self.last = deadline

    def add(self, deadline: float) -> None:
        """Somebody else waits for the same work."""
        self.first = min(self.first, deadline)
        self.last = max(self.last, deadline)


@dataclass(frozen=True)
class Turn:
    """An item's place among others. `arrived`: when its request was taken in, on the monotonic clock;
    `num_patches_ahead`: of the same request, of items before it in the prompt."""

    arrived: float = field(default_factory=time.monotonic)
    num_patches_ahead: int = 0


@dataclass(frozen=True)
class BatchedEmbedding:
    """One item's embedding [num_tokens, hidden]; the seconds it waited and its batch took; the items of that batch."""

    tensor: Tensor
    queue_s: float
    encode_s: float
    batch_items: int


@dataclass(eq=False)
class WaitingItem:
    """A prepared item, and who waits for its embedding. `prepared_at` is on the monotonic clock."""

    prepared: PreparedMedia
    prepared_at: float
    turn: Turn
    wanted_until: WorkDeadline
    result: "asyncio.Future[BatchedEmbedding]"

    @property
    def arrived(self) -> float:
        return self.turn.arrived

    @property
    def num_patches_ahead(self) -> int:
        return self.turn.num_patches_ahead

    @property
    def grid(self) -> Grid:
        return self.prepared.grid

    @property
    def num_patches(self) -> int:
        return self.prepared.grid.num_patches

    @property
    def media_bytes(self) -> int:
        return device_bytes(self.prepared)

    @property
    def deadline(self) -> float:
        return self.wanted_until.first

    def finish(self, embedding: BatchedEmbedding) -> None:
        if not self.result.done():
            self.result.set_result(embedding)

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)


def device_bytes(prepared: PreparedMedia) -> int:
    """What packing an item holds on the device beside its patches."""
    content = prepared.content
    if isinstance(content, EncodedJpeg):
        return picture_bytes(content.height * content.width)
    return content.frames.nbytes if isinstance(content, DecodedFrames) else content.patches.nbytes


def picture_bytes(num_pixels: int) -> int:
    """RGB as decoded, and as much again for what is resized across and not yet down."""
    return 2 * 3 * num_pixels


def host_bytes(prepared: PreparedMedia) -> int:
    """What an item holds in the host's memory while it waits."""
    content = prepared.content
    if isinstance(content, EncodedJpeg):
        return len(content.data)
    return content.frames.nbytes if isinstance(content, DecodedFrames) else content.patches.nbytes
