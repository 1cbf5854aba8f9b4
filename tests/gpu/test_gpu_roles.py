"""Actors with both halves of a 3B model on a GPU: how long they take to change stage, and that nothing is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from benchmarks.random_checkpoint import write_random_checkpoint
from benchmarks.role_switch import Load, Samples, go_round, measure_running, system
from router.control.roles.host_weights import HostWeights

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_default_dtype(torch.float32)
    path = write_random_checkpoint(tmp_path_factory.mktemp("random") / "3b", "3b")
    torch.set_default_dtype(torch.float32)
    torch.cuda.empty_cache()
    return path


def test_a_captured_graph_reads_weights_that_went_and_came_back() -> None:
    weight = torch.randn(8_192, 8_192, device="cuda", dtype=torch.bfloat16)
    held = HostWeights()
    held.hold([weight, torch.ones(3, device="cuda")])
    address = weight.data_ptr()
    x, out = (
        torch.randn(16, 8_192, device="cuda", dtype=torch.bfloat16),
        torch.empty(16, 8_192, device="cuda", dtype=torch.bfloat16),
    )
    torch.mm(x, weight, out=out)
    expected = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.mm(x, weight, out=out)
    for _ in range(3):
        free_before = torch.cuda.mem_get_info()[0]
        held.release()
        held.release()
        assert torch.cuda.mem_get_info()[0] - free_before >= held.num_bytes - 4 * MIB
        out.zero_()
        held.restore()
        assert weight.data_ptr() == address
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)


@dataclass(frozen=True)
class Seen:
    """What one system, whose start takes most of a minute, showed: the answers before and after a quiet round, and then
    the times of rounds with and without load."""

    before: list[tuple[int, ...]]
    after: list[tuple[int, ...]]
    samples: Samples
    load: Load


@pytest.fixture(scope="module")
def seen(folder: Path) -> Seen:
    return asyncio.run(look(str(folder)))


async def look(folder: str) -> Seen:
    async with system(folder) as (server, actors, client):
        load = Load(client)
        before = [await load.ask() for _ in range(3)]
        await go_round(server, actors, Samples(), "once")
        load._number = 0
        after = [await load.ask() for _ in range(3)]
        assert not load.errors
        samples, load = await measure_running(server, actors, client, num_rounds=3, num_workers=16)
        return Seen(before, after, samples, load)


def test_answers_are_the_same_after_a_round(seen: Seen) -> None:
    """Alone, and greedy: the same kernels over the same shapes."""
    assert seen.after == seen.before


def test_roles_within_50_ms_and_halves_within_a_second(seen: Seen) -> None:
    """The turn counts from the last request that was under way in the stage that the actor leaves."""
    assert seen.load.num_answers > 20 and not seen.load.errors
    for name, values in seen.samples.rows.items():
        print(name, values)
        if name.endswith(".turn_ms"):
            assert max(values) <= 1_000.0, name
        if name.endswith(".move_ms") and "encoder" not in name:
            assert max(values) <= 50.0, name
