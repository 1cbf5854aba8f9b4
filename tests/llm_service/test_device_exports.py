"""Copies of KV pages that wait on the device: counted until they are dropped, and bounded."""

from __future__ import annotations

import pytest
import torch

from llm_service.device_exports import DeviceExports
from llm_service.kv_cache import PagedKvCache, PageShape

CPU = torch.device("cpu")
SHAPE = PageShape(num_layers=2, page_size=4, num_kv_heads=2, head_dim=3, dtype=torch.float32)


def filled_cache(num_pages: int = 6) -> PagedKvCache:
    cache = PagedKvCache(SHAPE, num_pages, CPU)
    cache.tensor.copy_(torch.arange(cache.tensor.numel()).reshape(cache.tensor.shape))
    return cache


def test_copies_count_until_the_last_who_holds_them_lets_go() -> None:
    exports = DeviceExports(100, CPU)
    first, second = (exports.make(40, lambda: torch.zeros(10)) for _ in range(2))
    assert first is not None and second is not None
    assert exports.make(40, lambda: torch.zeros(10)) is None
    rows = first[2:]
    del first
    assert exports.num_bytes == 80, "a view holds the memory"
    del rows
    assert exports.num_bytes == 40
    third = exports.make(60, lambda: torch.zeros(15))
    assert third is not None and exports.num_bytes == 100
    del second, third
    assert exports.num_bytes == 0


def test_a_copy_that_fails_counts_nothing() -> None:
    exports = DeviceExports(100, CPU)
    with pytest.raises(ZeroDivisionError):
        exports.make(40, lambda: torch.zeros(1 // 0))
    assert exports.num_bytes == 0


def test_pages_beyond_the_bound_wait_on_the_host() -> None:
    """The same pages either way; here the device is the host too."""
    cache = filled_cache()
    exports = cache._device_exports = DeviceExports(3 * SHAPE.num_bytes, CPU)
    expected = cache.export_pages([4, 1], 7)
    on_device = cache.hand_over_pages([4, 1], 7)
    assert exports.num_bytes == 2 * SHAPE.num_bytes
    on_host = cache.hand_over_pages([4, 1], 7)
    assert exports.num_bytes == 2 * SHAPE.num_bytes
    for pages in (on_device, on_host):
        assert torch.equal(pages, expected)
        assert not pages[-1, :, :, 3:].any()
    del on_device, pages
    assert exports.num_bytes == 0
