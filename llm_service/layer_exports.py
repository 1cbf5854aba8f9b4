"""LayerExports: KV pages that leave a prefill actor while later layers of the same step are still computed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from llm_service.kv_export import ExportedPart
from llm_service.runner import LayerWatch
from llm_service.scheduler import Chunk, Scheduler
from llm_service.sequence import Sequence

logger = logging.getLogger(__name__)

Publish = Callable[[list[tuple[Sequence, list[ExportedPart]]]], None]


class LayerExports:
    """Belongs to the engine's thread, on which runners report as well."""

    def __init__(self, scheduler: Scheduler, publish: Publish) -> None:
        self._scheduler = scheduler
        self._publish = publish

    def watch_of(self, chunks: list[Chunk]) -> LayerWatch | None:
        """What the runner is to tell of a step of these chunks; None where nothing can leave before its end."""
        own = [chunk for chunk in chunks if chunk.sequence.kv_export is not None]
        ends = frozenset(end for chunk in own for end in self._scheduler.layer_ends(chunk))
        return LayerWatch(ends, partial(self._export, own)) if ends else None

    def _export(self, chunks: list[Chunk], num_layers: int) -> None:
        exported = [(chunk.sequence, parts) for chunk in chunks if (parts := self._parts_of(chunk, num_layers))]
        if exported:
            self._publish(exported)

    def _parts_of(self, chunk: Chunk, num_layers: int) -> list[ExportedPart]:
        try:
            return self._scheduler.export_parts(chunk, num_layers)
        except Exception:
            # It is tried again at the end of the step, where the sequence may fail for it, and no other.
            logger.warning("KV pages can't leave after %d layers", num_layers, exc_info=True)
            return []
