"""PagedKvCache: the tensor that holds the keys and values of every token, in pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llm_service.device_exports import DeviceExports
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import TextConfig

ALL_LAYERS = slice(None)


@dataclass(frozen=True)
class PageShape:
    """One page of all layers: [num_layers, 2, page_size, num_kv_heads, head_dim], keys before values."""

    num_layers: int
    page_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of_model(cls, config: TextConfig, page_size: int, dtype: torch.dtype) -> PageShape:
        return cls(config.num_hidden_layers, page_size, config.num_key_value_heads, config.head_dim, dtype)

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        return (self.num_layers, 2, self.page_size, self.num_kv_heads, self.head_dim)

    @property
    def num_bytes(self) -> int:
        return 2 * self.num_layers * self.page_size * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def num_pages_in(self, num_bytes: int) -> int:
        """Pages that fit into `num_bytes`. Raises ConfigurationError when not even one does."""
        num_pages = num_bytes // self.num_bytes
        if num_pages < 1:
            raise ConfigurationError(
                f"kv_cache_bytes is {num_bytes}, but one KV page of {self.page_size} tokens takes {self.num_bytes}",
                field="kv_cache_bytes",
            )
        return num_pages


class PageStore(Protocol):
    """Where pages come from and go to when they travel or are parked. `PagedKvCache` says what each does."""

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor: ...

    def hand_over_pages(self, pages: Sequence[int], num_tokens: int, layers: slice = ALL_LAYERS) -> Tensor: ...

    def import_pages(self, pages: Sequence[int], copy: Tensor) -> None: ...


class PagedKvCache:
    """Keys and values, [num_layers, 2, num_pages, page_size, num_kv_heads, head_dim]."""

    def __init__(self, shape: PageShape, num_pages: int, device: torch.device, export_bytes: int = 0) -> None:
        """export_bytes: memory beside the cache for pages that are handed over."""
        self.shape = shape
        self.num_pages = num_pages
        size = (shape.num_layers, 2, num_pages, shape.page_size, shape.num_kv_heads, shape.head_dim)
        # Zeros, not garbage: a masked NaN would still poison the attention's weighted sum.
        self.tensor = torch.zeros(size, dtype=shape.dtype, device=device)
        self._device_exports = DeviceExports(export_bytes, device) if device.type == "cuda" else None

    @property
    def page_size(self) -> int:
        return self.shape.page_size

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each [num_pages, page_size, num_kv_heads, head_dim]; views."""
        keys, values = self.tensor[layer_index].unbind(0)
        return keys, values

    def store(self, layer_index: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Writes key and value [T, num_kv_heads, head_dim] to the slots [T] (page * page_size + offset in the page)."""
        keys, values = self.layer(layer_index)
        keys.flatten(0, 1).index_copy_(0, slots, key)
        values.flatten(0, 1).index_copy_(0, slots, value)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        """A host copy of `pages`, which hold `num_tokens` tokens: one row a page, shaped as PageShape says.

        What lies behind the last token is zero: it may be left over from another request.
        """
        return self._on_host(pages, num_tokens, ALL_LAYERS)

    def hand_over_pages(self, pages: Sequence[int], num_tokens: int, layers: slice = ALL_LAYERS) -> Tensor:
        """As `export_pages`, for another actor, of some layers; on the device as long as there is room for copies.
        These layers of the steps that computed the pages must be over."""

        def copy() -> Tensor:
            pages_copy = self.copy_pages(pages, layers)
            zero_behind(pages_copy, num_tokens)
            return pages_copy

        if self._device_exports is not None:
            num_layers = len(range(*layers.indices(self.shape.num_layers)))
            num_bytes = len(pages) * self.shape.num_bytes * num_layers // self.shape.num_layers
            on_device = self._device_exports.make(num_bytes, copy)
            if on_device is not None:
                return on_device
        return self._on_host(pages, num_tokens, layers)

    def copy_pages(self, pages: Sequence[int], layers: slice = ALL_LAYERS) -> Tensor:
        """A copy of `pages` as they are, on the device: one row a page, shaped as PageShape says but for the layers."""
        index = torch.tensor(list(pages), dtype=torch.int64, device=self.device)
        return self.tensor[layers].index_select(2, index).permute(2, 0, 1, 3, 4, 5).contiguous()

    def _on_host(self, pages: Sequence[int], num_tokens: int, layers: slice) -> Tensor:
        copy = self.copy_pages(pages, layers).cpu()
        zero_behind(copy, num_tokens)
        return copy

    def import_pages(self, pages: Sequence[int], copy: Tensor) -> None:
        """Fills `pages` from a tensor as `export_pages` makes it, one row a page."""
        assert copy.shape == (len(pages), *self.shape.dims), f"{tuple(copy.shape)} for {len(pages)} pages"
        if not pages:
            return
        index = torch.tensor(list(pages), dtype=torch.int64, device=self.device)
        self.tensor.index_copy_(2, index, copy.to(self.device).permute(1, 2, 0, 3, 4, 5))


def zero_behind(copy: Tensor, num_tokens: int) -> None:
    """Zeroes what lies behind `num_tokens` tokens in exported pages, of which it is a part of the last."""
    num_pages, page_size = len(copy), copy.shape[3]
    num_tokens_in_last = num_tokens - (num_pages - 1) * page_size
    if num_pages and num_tokens_in_last < page_size:
        copy[-1, :, :, num_tokens_in_last:] = 0
