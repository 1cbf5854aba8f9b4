"""The embedding cache is bounded in bytes and forgets what was used least recently."""

import torch

from encoder_service.cache import EmbeddingCache
from triptych.models.qwen2_5_vl.grid import Grid

GRID = Grid(1, 2, 2)


def embedding() -> torch.Tensor:
    return torch.zeros(10, dtype=torch.float32)  # 40 bytes


def test_least_recently_used_goes_first() -> None:
    cache = EmbeddingCache(100)
    first = embedding()
    cache.put(("a", GRID), first)
    cache.put(("b", GRID), embedding())
    assert cache.get(("a", GRID)) is first
    cache.put(("c", GRID), embedding())
    assert ("b", GRID) not in cache and ("a", GRID) in cache and ("c", GRID) in cache
    assert (len(cache), cache.num_bytes) == (2, 80)


def test_a_grid_is_part_of_the_key() -> None:
    cache = EmbeddingCache(100)
    cache.put(("a", GRID), embedding())
    assert cache.get(("a", Grid(1, 2, 4))) is None


def test_what_does_not_fit_is_not_kept() -> None:
    cache = EmbeddingCache(39)
    cache.put(("a", GRID), embedding())
    assert (len(cache), cache.num_bytes) == (0, 0)
    EmbeddingCache(0).put(("a", GRID), embedding())


def test_putting_again_counts_once() -> None:
    cache = EmbeddingCache(100)
    cache.put(("a", GRID), embedding())
    cache.put(("a", GRID), embedding())
    assert (len(cache), cache.num_bytes) == (1, 40)
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)
