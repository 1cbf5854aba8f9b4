"""One batch on the stage's two computing threads: packed on one, through the tower on the other."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from encoder_service.engines import VisionEngine
from encoder_service.media.loader import PackedPatches, PatchLoader
from encoder_service.media.prepared import PreparedMedia
from encoder_service.memory import SETTING
from triptych.errors import InternalError, Overloaded, TriptychError, Unavailable
from triptych.models.qwen2_5_vl.grid import Grid

logger = logging.getLogger(__name__)

Outcome = Tensor | TriptychError
Result = TypeVar("Result")

# After that a GPU's memory may be free again.
_RETRY_S = 1.0


class EngineLost(Unavailable):
    """The device has failed for good in this process: nothing that follows can work."""


class BatchRunner:
    """Packs and encodes. The two threads work at the same time, each on one batch, in the order of the calls.

    What fails with others is tried again without them, so that an item fails for itself alone. On a GPU the tower has a
    stream of its own: neither what libraries put on the default stream nor a language model in this process waits for a
    whole batch.
    """

    def __init__(self, loader: PatchLoader, engine: VisionEngine) -> None:
        self._loader = loader
        self._engine = engine
        self._stream: torch.cuda.Stream | None = None
        if engine.device.type == "cuda":
            self._stream = torch.cuda.Stream(engine.device)  # type: ignore[no-untyped-call]
        self._pack_thread = _thread("encoder-pack", engine.device)
        self._engine_thread = _thread("encoder-engine", engine.device)

    async def pack(self, media: Sequence[PreparedMedia]) -> PackedPatches:
        return await self._run(self._pack_thread, lambda: _pack(self._loader, media))

    async def encode(self, packed: PackedPatches, grids: Sequence[Grid]) -> list[Outcome]:
        """An outcome for each of `grids`, those of the items that were packed without an error. Embeddings are final.

        Raises EngineLost when the engine can't go on.
        """
        return await self._run(self._engine_thread, lambda: self._encode(packed, grids))

    def close(self) -> None:
        """Waits for what runs. Not for an event loop."""
        self._pack_thread.shutdown(cancel_futures=True)
        self._engine_thread.shutdown(cancel_futures=True)
        self._loader.close()

    @staticmethod
    async def _run(thread: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    def _encode(self, packed: PackedPatches, grids: Sequence[Grid]) -> list[Outcome]:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            return self._attempt(packed.on_current_stream(), grids)

    def _attempt(self, patches: Tensor, grids: Sequence[Grid]) -> list[Outcome]:
        """The whole batch; when that fails its parts: halves when memory ran out, else one by one."""
        try:
            tensors = self._engine.encode(patches, grids)
            self._finish(tensors)
            return list(tensors)
        except Exception as error:
            # Its frames would keep the memory that the next attempts need.
            failure = error.with_traceback(None)
        _check_device_lives(failure)
        is_out_of_memory = isinstance(failure, torch.OutOfMemoryError)
        if is_out_of_memory and self._engine.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(grids) == 1:
            return [_typed(failure)]
        logger.warning("a batch of %d items failed and is tried in parts: %r", len(grids), failure)
        cuts = [0, len(grids) // 2, len(grids)] if is_out_of_memory else list(range(len(grids) + 1))
        outcomes: list[Outcome] = []
        for first, end in pairwise(cuts):
            start_row = sum(grid.num_patches for grid in grids[:first])
            num_rows = sum(grid.num_patches for grid in grids[first:end])
            outcomes += self._attempt(patches[start_row : start_row + num_rows], grids[first:end])
        return outcomes

    def _finish(self, embeddings: Sequence[Tensor]) -> None:
        """Waits until they are final: whoever gets them reads them on other streams. In this process that is the
        default one, so that their memory is not handed out again while it may still read."""
        if self._stream is None:
            return
        for embedding in embeddings:
            embedding.record_stream(torch.cuda.default_stream(self._engine.device))
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()  # type: ignore[no-untyped-call]
        done.synchronize()  # type: ignore[no-untyped-call]


def _pack(loader: PatchLoader, media: Sequence[PreparedMedia]) -> PackedPatches:
    """All items together; each half for itself when that raises."""
    try:
        return loader.pack(media)
    except Exception as error:
        failure = error.with_traceback(None)
    _check_device_lives(failure)
    if len(media) == 1:
        return PackedPatches(torch.empty(0), (_typed(failure),), None)
    logger.warning("packing %d items failed and is tried in halves: %r", len(media), failure)
    return _joined([_pack(loader, half) for half in (media[: len(media) // 2], media[len(media) // 2 :])])


def _joined(parts: Sequence[PackedPatches]) -> PackedPatches:
    """As if packed at once. Parts that are still being made are waited for: this is not the usual way."""
    for part in parts:
        if part.ready is not None:
            part.ready.synchronize()
    errors = tuple(error for part in parts for error in part.errors)
    filled = [part.patches for part in parts if part.patches.shape[0] > 0]
    return PackedPatches(torch.cat(filled) if filled else torch.empty(0), errors, None)


def _check_device_lives(error: Exception) -> None:
    """A failed kernel leaves a CUDA context of no use; what follows would fail likewise. Raises EngineLost then."""
    lost = getattr(torch, "AcceleratorError", None)
    if lost is not None and isinstance(error, lost):
        raise EngineLost(f"the GPU failed: {error}") from error


def _typed(error: Exception) -> TriptychError:
    if isinstance(error, TriptychError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return Overloaded(f"out of device memory ({SETTING}): {error}", field=SETTING, retry_after_s=_RETRY_S)
    return InternalError(f"encoding failed: {error!r}")


def _thread(name: str, device: torch.device) -> ThreadPoolExecutor:
    def begin() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(torch.cuda.current_device() if device.index is None else device)

    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=begin)
