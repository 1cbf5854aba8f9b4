"""No page is leaked or freed twice, whatever comes in which order."""

from __future__ import annotations

import random

import pytest
import torch
from engine_helpers import CPU
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.device_defaults import resolve_section
from llm_service.kv_cache import PagedKvCache, PageShape
from llm_service.page_hash import extend_page_hashes
from llm_service.page_pool import PagePool
from llm_service.prompt import MediaSpan, Prompt
from llm_service.scheduler import Scheduler
from llm_service.sequence import Sequence, SequenceState
from triptych.config import LanguageSection
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.sampling import SamplingParameters

PAGE_SIZE = 4
SHAPE = PageShape(num_layers=1, page_size=PAGE_SIZE, num_kv_heads=1, head_dim=2, dtype=torch.float32)


def text_sequence(token_ids: list[int], can_recompute: bool = True) -> Sequence:
    positions = torch.arange(len(token_ids)).expand(3, -1).numpy()
    prompt = Prompt(tuple(token_ids), (), positions)
    return Sequence("request", prompt, SamplingParameters(64), embeddings=() if can_recompute else None)


def image_sequence(content_key: str, grid: Grid) -> Sequence:
    positions = torch.arange(10).expand(3, -1).numpy()
    span = MediaSpan(offset=2, length=6, kind="image", grid=grid, content_key=content_key)
    return Sequence("request", Prompt(tuple(range(10)), (span,), positions), SamplingParameters(64), embeddings=None)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 30)),
        st.tuples(st.just("take over"), st.integers(1, 30)),
        st.tuples(st.just("step"), st.just(0)),
        st.tuples(st.just("end"), st.integers(0, 50)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS, num_pages=st.integers(8, 20), chunk=st.integers(1, 40), enable=st.booleans())
def test_every_page_is_in_one_place(actions: list[tuple[str, int]], num_pages: int, chunk: int, enable: bool) -> None:
    """Random requests from few distinct tokens (so that they share prefixes), stepped, ended and preempted."""
    pool = PagePool(num_pages, PAGE_SIZE, enable)
    section = LanguageSection.model_validate(
        {"max_running_requests": 5, "max_step_tokens": 12, "prefill_chunk_tokens": chunk, "mixed_prefill_tokens": 9}
    )
    scheduler = Scheduler(section, pool, PagedKvCache(SHAPE, num_pages, CPU))
    alive: list[Sequence] = []
    max_tokens = num_pages * PAGE_SIZE

    def step() -> None:
        chunks = scheduler.schedule()
        pool.check()
        assert bool(chunks) == scheduler.has_work
        assert sum(chunk.num_new_tokens for chunk in chunks) <= section.max_step_tokens
        for chunk in chunks:
            assert len(chunk.block_table) * PAGE_SIZE >= chunk.end
            scheduler.advance(chunk)
            if chunk.is_sampled:
                chunk.sequence.receive_token(chunk.end, chunk.end % 2)
            scheduler.publish(chunk)
            if chunk.sequence.num_tokens >= min(max_tokens, 45):
                scheduler.remove(chunk.sequence)
                alive.remove(chunk.sequence)
        pool.check()

    for action, number in actions:
        if action == "add":
            alive.append(text_sequence([index % 2 for index in range(number)]))
            scheduler.add(alive[-1])
        elif action == "take over":
            sequence = text_sequence([index % 2 for index in range(number)], can_recompute=False)
            sequence.take_over(number % 2, torch.zeros(pool.num_pages_for(number), *SHAPE.dims))
            alive.append(sequence)
            scheduler.add(sequence)
        elif action == "end" and alive:
            scheduler.remove(alive.pop(number % len(alive)))
        elif action == "step":
            step()
        pool.check()
    held = {page for sequence in alive for page in pool.table(sequence)}
    assert pool.num_held_pages == len(held)
    for _ in range(2_000):
        if not scheduler.has_work:
            break
        step()
    assert not alive
    assert pool.num_held_pages == 0
    assert pool.num_available_pages == num_pages


def test_parked_pages_come_back_as_they_were() -> None:
    """Two sequences in a cache for one: what was written before a preemption is there after it."""
    cache = PagedKvCache(SHAPE, 8, CPU)
    pool = PagePool(8, PAGE_SIZE, enable_prefix_cache=False)
    scheduler = Scheduler(resolve_section(LanguageSection(), CPU), pool, cache)
    contents = {}
    sequences = [text_sequence([seed] * 14, can_recompute=False) for seed in (1, 2)]
    for sequence in sequences:
        contents[sequence] = torch.randn(4, *SHAPE.dims)
        sequence.take_over(9, contents[sequence])
        scheduler.add(sequence)
    for _ in range(6):
        for chunk in scheduler.schedule():
            index = torch.tensor(chunk.block_table[:3])
            pages = cache.tensor.index_select(2, index).permute(2, 0, 1, 3, 4, 5)
            assert torch.equal(pages, contents[chunk.sequence][:3])
            scheduler.advance(chunk)
            chunk.sequence.receive_token(chunk.end, 3)
    assert scheduler.num_preemptions > 0
    parked = next(sequence for sequence in sequences if sequence.state is SequenceState.WAITING)
    scheduler.remove(next(sequence for sequence in sequences if sequence is not parked))
    cache.tensor.fill_(-1.0)
    (chunk,) = scheduler.schedule()
    assert chunk.sequence is parked
    pages = cache.tensor.index_select(2, torch.tensor(chunk.block_table[:3])).permute(2, 0, 1, 3, 4, 5)
    assert torch.equal(pages, contents[parked][:3])


def test_least_recently_used_pages_go_first() -> None:
    pool = PagePool(3, PAGE_SIZE)
    for holder, name in (("a", b"a"), ("b", b"b"), ("c", b"c")):
        (page,) = pool.allocate(holder, 1)
        pool.publish(page, name)
    for holder in ("b", "a", "c"):
        pool.release(holder)
    pool.allocate("again", 0, pool.match([b"b"]))
    pool.release("again")
    pool.allocate("new", 2)
    assert pool.match([b"b"])
    assert not pool.match([b"a"])
    assert not pool.match([b"c"])
    pool.check()


def test_hash_depends_on_all_that_the_pages_hold() -> None:
    def hashes(sequence: Sequence) -> list[bytes]:
        return extend_page_hashes(sequence, 2, PAGE_SIZE)

    grid = Grid(1, 4, 6)
    assert hashes(image_sequence("cat", grid)) == hashes(image_sequence("cat", grid))
    assert hashes(image_sequence("cat", grid))[0] != hashes(image_sequence("dog", grid))[0]
    text = text_sequence([5, 6, 7, 8, 1, 2, 3, 4])
    other_start, other_end = text_sequence([0, 6, 7, 8, 1, 2, 3, 4]), text_sequence([5, 6, 7, 8, 1, 2, 3, 0])
    assert hashes(text)[1] != hashes(other_start)[1]
    assert hashes(text)[0] == hashes(other_end)[0]
    assert hashes(text)[1] != hashes(other_end)[1]
    moved = text_sequence([5, 6, 7, 8, 1, 2, 3, 4])
    moved.prompt.positions[:] = moved.prompt.positions + 1
    assert hashes(moved)[0] != hashes(text)[0]


def test_a_cache_too_small_for_a_page_says_so() -> None:
    with pytest.raises(ConfigurationError, match="one KV page of 4 tokens takes 64"):
        SHAPE.num_pages_in(63)
    assert SHAPE.num_pages_in(random.randrange(64, 128)) == 1
