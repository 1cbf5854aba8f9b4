"""KV pages of a GPU that are handed over stay there, as long as there is room for copies."""

from __future__ import annotations

import pytest
import torch

from llm_service.kv_cache import PagedKvCache, PageShape

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHAPE = PageShape(num_layers=36, page_size=16, num_kv_heads=2, head_dim=128, dtype=torch.bfloat16)


def test_a_copy_on_the_device_equals_the_one_on_the_host() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    cache = PagedKvCache(SHAPE, 64, device, export_bytes=40 * SHAPE.num_bytes)
    cache.tensor.normal_()
    torch.cuda.synchronize()
    pages = [63, 0, *range(20, 48)]
    num_tokens = len(pages) * 16 - 5
    on_device = cache.hand_over_pages(pages, num_tokens)
    on_host = cache.hand_over_pages(pages, num_tokens)
    assert on_device.device == device and on_host.device.type == "cpu", "30 of 40 pages are taken by the first"
    assert torch.equal(on_device.cpu(), on_host)
    # A step that runs on meanwhile may write to the cache: the copy is the sender's own.
    cache.tensor.zero_()
    torch.cuda.synchronize()
    assert torch.equal(on_device.cpu(), on_host)
    assert cache._device_exports is not None
    del on_device
    assert cache._device_exports.num_bytes == 0
