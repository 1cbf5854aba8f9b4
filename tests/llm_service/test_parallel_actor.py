"""A leader and its follower as actors: they start, say what they are, and end together."""

from __future__ import annotations

import asyncio

import pytest

from llm_service.actor import LlmActor
from llm_service.parallel.follower_actor import FollowerActor
from triptych.config import DeploymentConfig
from triptych.errors import ModelError, Unavailable
from triptych.switch import SWITCH
from triptych.v1 import admin_pb2

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def disaggregated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")


def make_config(size: int) -> DeploymentConfig:
    stage = {"tensor_parallel": size, "num_pages": 32, "attention": "torch"}
    values = {"stages": {"decode": stage}, "control": {"start_timeout_s": 30.0}, "model": {"device": "cpu"}}
    return DeploymentConfig.from_sources(overrides=values, environment={})


def make_group(size: int) -> tuple[LlmActor, list[FollowerActor]]:
    config = make_config(size)
    return LlmActor(config, "decode"), [FollowerActor(config, "decode", rank) for rank in range(1, size)]


async def start(leader: LlmActor, followers: list[FollowerActor]) -> list[object]:
    rendezvous = await leader.rendezvous()
    starts = [leader.start(), *(follower.start(rendezvous) for follower in followers)]
    return await asyncio.gather(*starts, return_exceptions=True)


async def test_a_group_starts_and_ends_as_one() -> None:
    leader, followers = make_group(2)
    answer, _ = await start(leader, followers)
    assert isinstance(answer, bytes), answer
    info = admin_pb2.ActorInfo.FromString(answer)
    assert [rank.rank for rank in info.ranks] == [0, 1]
    assert info.weights.num_bytes == sum(rank.weights.num_bytes for rank in info.ranks)
    assert await leader.ping() and await followers[0].ping()
    await leader.stop()
    await followers[0].stop()
    with pytest.raises(Unavailable):
        await followers[0].ping()


async def test_a_follower_that_ends_takes_its_leader_out_of_service() -> None:
    leader, followers = make_group(2)
    await start(leader, followers)
    watch = leader._parts.engine_watch
    assert watch is not None
    await followers[0].stop()
    await asyncio.wait_for(watch, timeout=10.0)
    with pytest.raises(Unavailable):
        await leader.ping()
    await leader.stop()


async def test_heads_that_do_not_divide_are_named_by_every_rank() -> None:
    leader, followers = make_group(4)
    failures = await start(leader, followers)
    assert all(isinstance(failure, ModelError) and "num_key_value_heads is 2" in str(failure) for failure in failures)


async def test_a_leader_without_followers_gives_up_in_time() -> None:
    config = make_config(2).model_copy(
        update={"control": make_config(2).control.model_copy(update={"start_timeout_s": 0.1})}
    )
    leader = LlmActor(config, "decode")
    with pytest.raises(Unavailable, match="0 of 1 followers"):
        await leader.start()
