"""Lane cuda_ipc between processes on one GPU: `fault_cases`, `burst_cases`, and what is its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from actor_process import actors_elsewhere
from burst_cases import ask_all_at_once
from fault_cases import (
    PATIENCE_S,
    Actors,
    check,
    kill_producer,
    never_acknowledge,
    silence_consumer,
    stop_and_continue_consumer,
    stop_producer,
    transport,
    turn_lane_off,
)
from harness import ONE_OF_EACH, InProcessSystem

from router.control.membership import StageName
from triptych.errors import IntegrityError, Unavailable
from triptych.transport.cuda_ipc.lane import CudaIpcConsumerLane
from triptych.transport.fetcher import TensorFetcher

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]

LANE = "cuda_ipc"


@pytest.fixture
async def actors() -> AsyncIterator[Actors]:
    async with Actors("cuda:0") as made:
        yield made


@pytest.mark.parametrize("moment", ["before", "during", "after"])
async def test_a_producer_killed(actors: Actors, moment: str) -> None:
    await kill_producer(actors, LANE, moment)


async def test_a_producer_stopped_past_the_deadline_and_continued(actors: Actors) -> None:
    await stop_producer(actors, LANE)


@pytest.mark.parametrize("what", ["killed", "stopped"])
async def test_a_consumer_that_falls_silent_in_a_transfer_holds_nothing(actors: Actors, what: str) -> None:
    await silence_consumer(actors, LANE, what)


async def test_a_consumer_stopped_and_continued_in_time(actors: Actors) -> None:
    await stop_and_continue_consumer(actors, LANE)


async def test_a_consumer_that_never_acknowledges(actors: Actors) -> None:
    await never_acknowledge(actors, LANE)


@pytest.mark.parametrize("next_lane", ["shm", "grpc"])
async def test_the_lane_turned_off_in_mid_run(actors: Actors, next_lane: str) -> None:
    await turn_lane_off(actors, LANE, next_lane)


async def test_a_checksum_broken_on_purpose(actors: Actors) -> None:
    settings = transport(LANE, "grpc", memory_checksums=True)
    producer = await actors.produce(settings)
    fetcher = actors.consume(settings)
    check(await fetcher.fetch(await producer.ticket(LANE, "grpc"), timeout_s=PATIENCE_S), LANE)
    await producer.ask("spoil")
    check(await fetcher.fetch(await producer.ticket(LANE, "grpc"), timeout_s=PATIENCE_S), "grpc")
    assert [each.num_failures for each in fetcher.lane_counters()] == [1, 0]
    forced = actors.consume(transport(LANE, memory_checksums=True))
    with pytest.raises(IntegrityError, match="crc32"):
        await forced.fetch(await producer.ticket(LANE), timeout_s=PATIENCE_S)
    await producer.wait_nothing_held()


class HeldCopies:
    """Keeps a consumer between the mapping of the producer's memory and its copy."""

    def __init__(self, fetcher: TensorFetcher) -> None:
        lane = fetcher._lanes[0]
        assert isinstance(lane, CudaIpcConsumerLane)
        self.lane = lane
        self.has_begun, self.may_copy = threading.Event(), threading.Event()
        self._copy_out = lane._copy_out
        lane._copy_out = self._hold_and_copy  # type: ignore[method-assign]

    def _hold_and_copy(self, source: int, target: torch.Tensor) -> int:
        self.has_begun.set()
        assert self.may_copy.wait(PATIENCE_S)
        return self._copy_out(source, target)


async def test_a_producer_killed_while_its_memory_is_read(actors: Actors) -> None:
    """The fetch may still end well, but never with other bytes; and the GPU goes on for everybody else."""
    settings = transport(LANE)
    victim, other = await actors.produce(settings), await actors.produce(settings)
    fetcher = actors.consume(settings)
    check(await fetcher.fetch(await victim.ticket(LANE), timeout_s=PATIENCE_S), LANE)
    copies, again = HeldCopies(fetcher), await victim.ticket(LANE)
    fetching = asyncio.create_task(fetcher.fetch(await victim.ticket(LANE), timeout_s=PATIENCE_S))
    await asyncio.to_thread(copies.has_begun.wait, PATIENCE_S)
    victim.process.kill()
    await asyncio.to_thread(victim.process.join)
    copies.may_copy.set()
    (outcome,) = await asyncio.gather(fetching, return_exceptions=True)
    print("killed while it was read:", repr(outcome)[:200])
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, Unavailable)
    else:
        check(outcome, LANE)
    with pytest.raises(Unavailable):
        await fetcher.fetch(again, timeout_s=PATIENCE_S)
    assert len(copies.lane.mappings) == 0
    check(await fetcher.fetch(await other.ticket(LANE), timeout_s=PATIENCE_S), LANE)
    assert torch.ones(1000, device="cuda").sum() == 1000
    await other.wait_nothing_held()


@pytest.mark.timeout(200)
async def test_two_hundred_requests_at_once(random_model_folder: Path) -> None:
    """Encoder, prefill (here) and decode are three processes: embeddings and KV pages both go over the lane."""
    elsewhere = (StageName.ENCODER, StageName.DECODE)
    plain = {"attention": "torch"}
    system = InProcessSystem(
        random_model_folder,
        ONE_OF_EACH,
        elsewhere,
        model={"device": "cuda"},
        transport={"lanes": (LANE, "shm", "grpc")},
        stages={
            "encoder": {"cache_bytes": 0, "host_cache_bytes": 0, "engine": "torch"},
            "prefill": plain,
            "decode": plain,
        },
    )
    async with actors_elsewhere(system.config, elsewhere) as infos, system:
        for info in infos:
            assert LANE in info.lanes
            system.adopt(info)
        await ask_all_at_once(system, LANE)
