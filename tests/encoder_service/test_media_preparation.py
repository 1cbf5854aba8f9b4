"""Media threads take items in order, and no more than what waits prepared may weigh."""

import asyncio
import math
import threading
import time

import pytest
import torch
from encoder_samples import image_media

from encoder_service.items import MediaItem
from encoder_service.media.prepared import FinishedPatches, PreparedMedia
from encoder_service.preparation import Preparation
from encoder_service.work import WorkDeadline
from triptych.errors import DeadlineExceeded
from triptych.models.qwen2_5_vl.grid import Grid

GRID = Grid(1, 2, 2)
ITEM_BYTES = 400
ITEM = MediaItem("key", GRID, image_media(b""), "media")


class Loader:
    """100 floats an item; `go_on` holds the threads back."""

    def __init__(self) -> None:
        self.num_begun = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None

    def prepare(self, item: MediaItem, given_up: threading.Event | None = None) -> PreparedMedia:
        self.num_begun += 1
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        return PreparedMedia(GRID, item.field, (28, 28), FinishedPatches(torch.zeros(100)))


async def settle() -> None:
    """Lets threads and callbacks do what they can."""
    for _ in range(20):
        await asyncio.sleep(0.002)


async def hold(preparation: Preparation, release: asyncio.Event) -> None:
    async with preparation.prepared(ITEM, WorkDeadline()):
        await release.wait()


async def test_a_thread_begins_only_while_little_is_held() -> None:
    loader, release = Loader(), asyncio.Event()
    preparation = Preparation(loader, 2, max_held_bytes=3 * ITEM_BYTES)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(hold(preparation, release)) for _ in range(10)]
    await settle()
    assert 3 <= loader.num_begun <= 4 and preparation.held_bytes <= 4 * ITEM_BYTES
    release.set()
    await asyncio.gather(*tasks)
    assert loader.num_begun == 10 and preparation.held_bytes == 0
    preparation.close()


async def test_cancelled_ones_and_failed_ones_leave_their_place() -> None:
    loader, release = Loader(), asyncio.Event()
    preparation = Preparation(loader, 1, max_held_bytes=ITEM_BYTES)  # type: ignore[arg-type]
    loader.go_on.clear()
    tasks = [asyncio.create_task(hold(preparation, release)) for _ in range(6)]
    await settle()
    assert loader.num_begun == 1
    for task in tasks[:5]:
        task.cancel()
    loader.error = RuntimeError("broken")
    loader.go_on.set()
    assert isinstance((await asyncio.gather(*tasks, return_exceptions=True))[5], RuntimeError)
    loader.error = None
    release.set()
    await asyncio.gather(*(hold(preparation, release) for _ in range(3)))
    assert (preparation.held_bytes, preparation._num_free, len(preparation._queue)) == (0, 1, 0)
    preparation.close()


async def test_what_nobody_wants_any_more_is_not_begun() -> None:
    loader = Loader()
    preparation = Preparation(loader, 1, max_held_bytes=ITEM_BYTES)  # type: ignore[arg-type]
    with pytest.raises(DeadlineExceeded, match="media was decoded"):
        async with preparation.prepared(ITEM, WorkDeadline(time.monotonic() - 1)):
            pass
    assert loader.num_begun == 0 and preparation._num_free == 1
    preparation.close()


def test_a_deadline_by_several_is_the_last_one_for_dropping_and_the_first_for_order() -> None:
    deadline = WorkDeadline(5.0)
    deadline.add(3.0)
    assert (deadline.first, deadline.last) == (3.0, 5.0)
    deadline.add(math.inf)
    assert (deadline.first, deadline.last) == (3.0, math.inf)
