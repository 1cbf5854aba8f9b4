"""Encoding, prefill and the way of KV pages beside each other, with the real stages in one process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import COLOCATED, ONE_OF_EACH, ONE_OF_TWO, TWO_ENCODERS, InProcessSystem, Topology
from PIL import Image
from torch import Tensor

from encoder_service.actor import EncoderActor
from encoder_service.stage import EncoderStage
from llm_service.actor import LlmActor
from llm_service.stage import LlmStage
from router.control.membership import StageName
from triptych.models.qwen2_5_vl.grid import Grid

LONG = {"max_tokens": 24, "ignore_eos": True}
COLORS = ("red", "green", "blue", "black", "orange", "purple")


def pictures() -> list[Image.Image]:
    """Of different sizes, the largest first."""
    drawn = []
    for number, color in enumerate(COLORS):
        image = Image.new("RGB", (168 - 28 * (number % 3), 84), "white")
        image.paste(color, (10, 10, 40 + number, 40))
        drawn.append(image)
    return drawn


def values(overlaps: bool) -> dict[str, Any]:
    """Everything in the smallest pieces, or as a whole."""
    if not overlaps:
        return {"stages": _language(overlap_encode=False), "transport": {"kv_part_bytes": 0}}
    stages = _language(overlap_min_tokens=1, prefill_chunk_tokens=24) | {"encoder": {"max_batch_patches": 1}}
    return {"stages": stages, "transport": {"kv_part_bytes": 1}}


def _language(**section: object) -> dict[str, Any]:
    return {name: dict(section) for name in ("prefill", "decode", "prefill_decode")}


async def expected_tokens(folder: Path) -> list[tuple[int, ...]]:
    async with InProcessSystem(folder, ONE_OF_TWO, **values(overlaps=False)) as system:
        return await ask_all(system)


async def ask_all(system: InProcessSystem) -> list[tuple[int, ...]]:
    """Requests with all pictures, with some, and with none, together."""
    drawn = pictures()
    answers = await asyncio.gather(
        system.client.ask("which is the largest?", images=drawn, **LONG),
        system.client.ask("what is it?", images=drawn[1:3], **LONG),
        system.client.ask("count to three", **LONG),
        system.client.ask("which is the largest?", images=drawn[::-1], temperature=1.0, seed=5, **LONG),
    )
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("topology", [ONE_OF_TWO, ONE_OF_EACH, TWO_ENCODERS], ids=str)
async def test_the_same_tokens_with_and_without_overlap(random_model_folder: Path, topology: Topology) -> None:
    expected = await expected_tokens(random_model_folder)
    async with InProcessSystem(random_model_folder, topology, **values(overlaps=True)) as system:
        assert await ask_all(system) == expected
        assert await ask_all(system) == expected, "from caches"
        await system.wait_until_nothing_is_held()


@pytest.mark.parametrize("lane", ["shm", "grpc"])
async def test_pages_in_groups_of_layers_give_the_tokens_of_a_colocated_actor(
    random_model_folder: Path, lane: str
) -> None:
    async with InProcessSystem(random_model_folder, COLOCATED, **values(overlaps=False)) as system:
        expected = await ask_all(system)
    small = values(overlaps=True)
    small["transport"] |= {"kv_layer_groups": 2, "lanes": (lane,)}
    async with InProcessSystem(random_model_folder, ONE_OF_EACH, **small) as system:
        assert await ask_all(system) == expected
        assert await ask_all(system) == expected, "from caches"
        answer = await system.client.ask("count to three", **LONG)
        assert answer.token_ids == expected[2] and answer.route.kv_lane == lane
        await system.wait_until_nothing_is_held()


class Gate:
    """Lets an encoder's engine make so many pictures and no more, until it is opened."""

    def __init__(self, stage: EncoderStage, num_let_through: int) -> None:
        self._engine, self.device = stage._runner._engine, stage._runner._engine.device
        self._turns = threading.Semaphore(num_let_through)
        stage._runner._engine = self  # type: ignore[assignment]

    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        assert self._turns.acquire(timeout=20)
        return self._engine.encode(patches, grids)

    def open(self) -> None:
        self._turns.release(1_000)


def encoder_stage(system: InProcessSystem, actor_id: str) -> EncoderStage:
    actor = system.actors[actor_id]
    assert isinstance(actor, EncoderActor)
    assert actor._stage is not None
    return actor._stage


def prefill_stage(system: InProcessSystem) -> LlmStage:
    (actor_id,) = system.ids(StageName.PREFILL)
    actor = system.actors[actor_id]
    assert isinstance(actor, LlmActor)
    stage = actor._parts.stage
    assert stage is not None
    return stage


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(4_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come true")


async def test_an_encoder_that_dies_after_some_pictures_costs_only_the_others(random_model_folder: Path) -> None:
    expected = (await expected_tokens(random_model_folder))[0]
    small_pages = values(overlaps=True)
    for section in ("prefill", "decode"):
        # So that pages end where pictures do.
        small_pages["stages"][section] |= {"page_size": 1, "num_pages": 2_048}
    async with InProcessSystem(random_model_folder, ONE_OF_EACH, **small_pages) as system:
        (first_id,) = system.ids(StageName.ENCODER)
        gate = Gate(encoder_stage(system, first_id), num_let_through=4)
        asking = asyncio.create_task(system.client.ask("which is the largest?", images=pictures(), **LONG))
        embeddings = prefill_stage(system)._embeddings
        await until(lambda: embeddings.num_accepted == 4)
        engine = prefill_stage(system)._engine
        (sequence,) = engine.scheduler.running
        fifth = sequence.prompt.media[4]
        await until(lambda: sequence.num_computed_tokens == fifth.offset)
        second = await system.add(StageName.ENCODER)
        stage = encoder_stage(system, second.actor_id)
        second_gate = Gate(stage, num_let_through=0)
        killing = asyncio.create_task(system.kill(first_id))
        await until(lambda: stage.counters().accepted_items == 6)
        # The prefill actor has the pages of four pictures, and says so.
        await until(lambda: stage.leases.counters().pending == 2)
        gate.open()
        second_gate.open()
        assert (await asking).token_ids == expected
        await killing
        # Two batches may have been under way when the tickets of their pictures were released.
        assert stage.counters().encoded_items <= 2 + 2
        await system.wait_until_nothing_is_held()


async def test_a_client_that_leaves_between_two_pictures(random_model_folder: Path) -> None:
    async with InProcessSystem(random_model_folder, ONE_OF_EACH, **values(overlaps=True)) as system:
        (encoder_id,) = system.ids(StageName.ENCODER)
        gate = Gate(encoder_stage(system, encoder_id), num_let_through=3)
        asking = asyncio.create_task(system.client.ask("which is the largest?", images=pictures(), **LONG))
        embeddings = prefill_stage(system)._embeddings
        await until(lambda: embeddings.num_accepted == 3)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        gate.open()
        await system.wait_until_nothing_is_held()
