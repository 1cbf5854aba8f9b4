"""GatheredPages: KV pages of all ranks seen as one cache, so that they travel between groups of different sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llm_service.kv_cache import ALL_LAYERS, PagedKvCache, zero_behind
from llm_service.parallel.frames import FrameKind
from llm_service.parallel.leader import LeaderLink

# What a rank sends or takes at once: bounds the memory beside the cache, which fills the device.
_PIECE_BYTES = 64 * 2**20
_HEAD_DIM = 4


class GatheredPages:
    """The leader's pages together with those of its followers. Used by the engine's thread alone, like the runner."""

    def __init__(self, cache: PagedKvCache, link: LeaderLink) -> None:
        self.shape = replace(cache.shape, num_kv_heads=cache.shape.num_kv_heads * link.collectives.size)
        self._cache = cache
        self._link = link

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        """As `PagedKvCache.export_pages`, with the KV heads of all ranks."""
        return self.hand_over_pages(pages, num_tokens)

    @torch.inference_mode()
    def hand_over_pages(self, pages: Sequence[int], num_tokens: int, layers: slice = ALL_LAYERS) -> Tensor:
        """As `export_pages`, of some layers: the heads of all ranks meet in the host's memory."""
        first_layer, end_layer, _ = layers.indices(self.shape.num_layers)
        copy = torch.empty((len(pages), end_layer - first_layer, *self.shape.dims[1:]), dtype=self.shape.dtype)
        for first, piece in _pieces(self._cache, pages):
            self._link.tell(FrameKind.EXPORT, [first_layer, end_layer, *piece])
            parts = self._link.collectives.gather(self._cache.copy_pages(piece, layers))
            rows = copy[first : first + len(piece)]
            for own, part in zip(rows.chunk(len(parts), _HEAD_DIM), parts, strict=True):
                own.copy_(part)
        self._link.check()
        zero_behind(copy, num_tokens)
        return copy

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], copy: Tensor) -> None:
        """As `PagedKvCache.import_pages`, with the KV heads of all ranks."""
        assert copy.shape == (len(pages), *self.shape.dims), f"{tuple(copy.shape)} for {len(pages)} pages"
        for first, piece in _pieces(self._cache, pages):
            self._link.tell(FrameKind.IMPORT, piece)
            rows = copy[first : first + len(piece)].to(self._cache.device)
            parts = [part.contiguous() for part in rows.chunk(self._link.collectives.size, _HEAD_DIM)]
            own = torch.empty_like(parts[0])
            self._link.collectives.scatter(own, parts)
            self._cache.import_pages(piece, own)


def _pieces(cache: PagedKvCache, pages: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The pages, a bounded number at a time, each time with how many came before."""
    num_pages = max(1, _PIECE_BYTES // cache.shape.num_bytes)
    for first in range(0, len(pages), num_pages):
        yield first, list(pages[first : first + num_pages])
