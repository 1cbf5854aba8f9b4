"""The embedding cache is bounded in bytes in both tiers and forgets what was used least recently."""

import asyncio
import random
import threading

import torch
from torch import Tensor

from encoder_service.cache import ContentId, EmbeddingCache, pinned_block_bytes
from triptych.models.qwen2_5_vl.grid import Grid

GRID = Grid(1, 2, 2)
CPU = torch.device("cpu")


def embedding(value: float = 0.0) -> Tensor:
    return torch.full((10,), float(value))  # 40 bytes, 64 in pinned memory


def key(name: object) -> ContentId:
    return (str(name), GRID)


class HostCopies:
    """Stands in for a GPU: the same calls between two tensors of this host. `hold` keeps copies from ending."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None

    def to_host(self, tensor: Tensor) -> Tensor:
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        return tensor.clone()

    def to_device(self, tensor: Tensor, device: torch.device) -> Tensor:
        return tensor.clone()


async def test_least_recently_used_goes_first() -> None:
    cache = EmbeddingCache(100, device=CPU)
    first = embedding()
    cache.put(key("a"), first)
    cache.put(key("b"), embedding())
    assert cache.get(key("a")) is first
    cache.put(key("c"), embedding())
    assert key("b") not in cache and key("a") in cache and key("c") in cache
    assert (len(cache.on_device), cache.device_bytes, cache.counters.dropped) == (2, 80, 1)


async def test_a_grid_is_part_of_the_key() -> None:
    cache = EmbeddingCache(100, device=CPU)
    cache.put(key("a"), embedding())
    assert cache.get(("a", Grid(1, 2, 4))) is None


async def test_what_does_not_fit_is_not_kept() -> None:
    cache = EmbeddingCache(39, device=CPU)
    cache.put(key("a"), embedding())
    assert (len(cache.on_device), cache.device_bytes) == (0, 0)
    EmbeddingCache(0, device=CPU).put(key("a"), embedding())


async def test_putting_again_counts_once() -> None:
    cache = EmbeddingCache(100, device=CPU)
    cache.put(key("a"), embedding())
    cache.put(key("a"), embedding())
    assert (len(cache.on_device), cache.device_bytes) == (1, 40)
    await cache.close()
    assert (len(cache.on_device), cache.device_bytes) == (0, 0)


async def test_what_falls_out_goes_to_the_host_and_comes_back() -> None:
    cache = EmbeddingCache(400, 1_000, HostCopies(), device=CPU)  # 350 bytes: eight embeddings
    for index in range(9):
        cache.put(key(index), embedding(index))
    await cache.wait_spilled()
    assert cache.get(key(0)) is None and key(0) in cache
    assert (len(cache.on_host), cache.on_host.num_bytes, cache.counters.spilled) == (1, 64, 1)
    assert torch.equal(await cache.promote(key(0)), embedding(0))
    assert torch.equal(cache.get(key(0)), embedding(0))  # type: ignore[arg-type]
    assert (cache.counters.host_hits, cache.counters.device_hits) == (1, 1)
    await cache.wait_spilled()
    assert key(1) in cache and key(1) not in cache.on_device  # it made room
    await cache.close()


async def test_bytes_on_their_way_count_and_are_bounded() -> None:
    copies = HostCopies()
    copies.go_on.clear()
    cache = EmbeddingCache(400, 1_000, copies, device=CPU)
    for index in range(11):
        cache.put(key(index), embedding())
    # Three fell out, but an eighth of 400 bytes has room for one that is under way.
    assert (cache.spilling_bytes, cache.counters.dropped) == (40, 2)
    assert cache.device_bytes <= 400
    copies.go_on.set()
    await cache.wait_spilled()
    assert (cache.spilling_bytes, cache.counters.spilled, len(cache.on_host)) == (0, 1, 1)
    await cache.close()


async def test_a_copy_that_fails_costs_its_embedding_alone() -> None:
    copies = HostCopies()
    cache = EmbeddingCache(400, 1_000, copies, device=CPU)
    copies.error = RuntimeError("no pinned memory left")
    for index in range(9):
        cache.put(key(index), embedding())
    await cache.wait_spilled()
    assert key(0) not in cache and cache.spilling_bytes == 0 and cache.counters.dropped == 1
    copies.error = None
    cache.put(key(9), embedding())
    await cache.wait_spilled()
    assert key(1) in cache
    await cache.close()


async def test_bounds_hold_under_any_use() -> None:
    """Random sizes, hits and misses: both tiers within their bytes at every step, every answer the right one."""
    random_source = random.Random(3)
    cache = EmbeddingCache(4_000, 6_000, HostCopies(), device=CPU)
    sizes = {name: random_source.randint(1, 400) for name in range(60)}
    for _ in range(2_000):
        name = random_source.choice(list(sizes))
        tensor = cache.get(key(name))
        if tensor is None and key(name) in cache:
            tensor = await cache.promote(key(name))
        elif tensor is None:
            cache.put(key(name), tensor := torch.full((sizes[name],), float(name)))
        assert tensor.shape == (sizes[name],) and tensor[0] == name
        assert cache.device_bytes <= 4_000 and cache.on_host.num_bytes <= 6_000
        if random_source.random() < 0.3:
            await asyncio.sleep(0)
    await cache.wait_spilled()
    assert cache.counters.host_hits > 50 and cache.counters.device_hits > 50
    await cache.close()


def test_pinned_memory_comes_in_powers_of_two() -> None:
    assert [pinned_block_bytes(size) for size in (1, 40, 64, 65, 4_898_816)] == [1, 64, 64, 128, 8_388_608]
