"""Peers killed or stopped before, in and after a transfer, over every lane that needs no GPU (see `fault_cases`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fault_cases import (
    Actors,
    kill_producer,
    never_acknowledge,
    silence_consumer,
    stop_producer,
    turn_lane_off,
)

LANES = ["shm", "gloo", "grpc"]


@pytest.fixture
async def actors() -> AsyncIterator[Actors]:
    async with Actors() as made:
        yield made


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("moment", ["before", "during", "after"])
async def test_a_producer_killed(actors: Actors, lane: str, moment: str) -> None:
    await kill_producer(actors, lane, moment)


@pytest.mark.parametrize("lane", LANES)
async def test_a_producer_stopped_past_the_deadline_and_continued(actors: Actors, lane: str) -> None:
    await stop_producer(actors, lane)


@pytest.mark.parametrize("what", ["killed", "stopped"])
async def test_a_consumer_that_falls_silent_in_a_transfer_holds_nothing(actors: Actors, what: str) -> None:
    await silence_consumer(actors, "gloo", what)


async def test_a_consumer_that_never_acknowledges(actors: Actors) -> None:
    await never_acknowledge(actors, "shm", "gloo", "grpc")


async def test_a_lane_turned_off_in_mid_run(actors: Actors) -> None:
    await turn_lane_off(actors, "shm", "grpc")
