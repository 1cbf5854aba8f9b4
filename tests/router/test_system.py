"""The router with the real stages, in one process over loopback gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from harness import COLOCATED, ONE_OF_EACH, ONE_OF_TWO, TOPOLOGIES, InProcessSystem, Topology
from PIL import Image

from router.control.membership import StageName
from triptych.client import Answer, AsyncClient, assistant, image, system, user, video

LONG = {"max_tokens": 24, "ignore_eos": True}


def picture(color: str, width: int = 84, height: int = 56) -> Image.Image:
    drawn = Image.new("RGB", (width, height), "white")
    drawn.paste(color, (10, 10, 40, 40))
    return drawn


async def ask_everything(client: AsyncClient) -> list[Answer]:
    """Text, one picture, two of different sizes, pictures between text, a video, many turns: all at once."""
    frames = [picture(color, 56, 56) for color in ("red", "green", "blue", "white")]
    return await asyncio.gather(
        client.ask("count to three", **LONG),
        client.ask("what is it?", images=[picture("red")], **LONG),
        client.ask("which has more?", images=[picture("red"), picture("blue", 140, 56)], **LONG),
        client.chat([user("first", image(picture("green")), "then", image(picture("red", 56, 112)), "?")], **LONG),
        client.chat([user(video(frames, frames_per_second=1.7), "which way?")], **LONG),
        client.chat(
            [
                system("Be brief."),
                *(m for n in range(4) for m in (user(f"hi {n}"), assistant("yes"))),
                user(image(picture("blue")), "and now?"),
            ],
            **LONG,
        ),
        client.ask("what is it?", images=[picture("blue")], temperature=1.0, seed=7, **LONG),
    )


@pytest.fixture(scope="module")
def answers() -> dict[str, list[tuple[int, ...]]]:
    """Token ids by topology, gathered over the parametrized runs."""
    return {}


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
async def test_every_topology_gives_the_same_tokens(
    random_model_folder: Path, topology: Topology, answers: dict[str, list[tuple[int, ...]]]
) -> None:
    async with InProcessSystem(random_model_folder, topology) as system:
        results = await ask_everything(system.client)
        again = await ask_everything(system.client)
        assert [answer.token_ids for answer in again] == [answer.token_ids for answer in results]
        assert all(len(answer.token_ids) == LONG["max_tokens"] for answer in results)
        assert results[1].token_ids != results[6].token_ids
        answers[str(topology)] = [answer.token_ids for answer in results]
        assert all(tokens == answers[str(topology)] for tokens in answers.values())
        await system.wait_until_nothing_is_held()
        accepted = 0
        for actor_id in system.actors:
            accepted += (await system.info(actor_id)).encoder.accepted_items
        assert accepted >= 8


async def test_pictures_of_one_request_are_encoded_side_by_side(random_model_folder: Path) -> None:
    pictures = [
        picture(color, side, side) for color, side in (("red", 140), ("blue", 56), ("green", 112), ("black", 84))
    ]
    tokens = []
    for num_encoders in (1, 2):
        async with InProcessSystem(random_model_folder, Topology(encoder=num_encoders, prefill=1, decode=1)) as system:
            answer = await system.client.ask("which is the largest?", images=pictures, **LONG)
            encoders = system.ids(StageName.ENCODER)
            assert sorted(set(answer.route.encoder_actors)) == sorted(encoders)
            patches = [(await system.info(actor_id)).encoder.encoded_patches for actor_id in encoders]
            # Longest first: 140 and 56 px on the one, 112 and 84 px on the other.
            assert sorted(patches) == ([216] if num_encoders == 1 else [100, 116])
            tokens.append(answer.token_ids)
            await system.wait_until_nothing_is_held()
    assert tokens[0] == tokens[1]


async def test_different_pictures_give_different_answers(random_model_folder: Path) -> None:
    async with InProcessSystem(random_model_folder, ONE_OF_EACH) as system:
        red, blue = await asyncio.gather(
            *(system.client.ask("what is it?", images=[picture(color)], **LONG) for color in ("red", "blue"))
        )
        assert red.token_ids != blue.token_ids
        assert red.usage.prompt_tokens == blue.usage.prompt_tokens
        assert red.route.encoder_actors and red.route.embedding_lanes and red.route.kv_lane


@pytest.mark.parametrize("topology", [ONE_OF_TWO, ONE_OF_EACH, COLOCATED], ids=str)
async def test_a_truncated_picture_is_refused_and_the_next_request_works(
    random_model_folder: Path, topology: Topology, tmp_path: Path
) -> None:
    from triptych.errors import InvalidRequest

    path = tmp_path / "cut.jpg"
    Image.effect_noise((112, 112), 60).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-800])
    async with InProcessSystem(random_model_folder, topology) as system:
        with pytest.raises(InvalidRequest) as caught:
            await system.client.ask("what is it?", images=[picture("red"), path], **LONG)
        assert caught.value.field == "messages[0].parts[1].image.data"
        assert "messages[0].parts[1].image.data" in caught.value.message
        await system.wait_until_nothing_is_held()
        assert (await system.client.ask("what is it?", images=[picture("red")], **LONG)).text is not None


@pytest.mark.parametrize("stage", [StageName.ENCODER, StageName.PREFILL, StageName.DECODE])
async def test_killing_an_actor_under_load_costs_no_answer(random_model_folder: Path, stage: StageName) -> None:
    topology = Topology(encoder=2, prefill=2, decode=2)
    options = LONG | {"max_tokens": 60}
    async with InProcessSystem(random_model_folder, topology) as system:
        colors = ("red", "blue", "green", "black", "yellow", "purple")
        expected = await asyncio.gather(
            *(system.client.ask("what?", images=[picture(color)], **options) for color in colors)
        )
        asking = [
            asyncio.create_task(system.client.ask("what?", images=[picture(color)], **options)) for color in colors
        ]
        await asyncio.sleep(0.1)
        await system.kill(system.ids(stage)[0])
        got = await asyncio.gather(*asking)
        assert [answer.token_ids for answer in got] == [answer.token_ids for answer in expected]
        await system.wait_until_nothing_is_held()


async def test_a_client_that_leaves_frees_everything(random_model_folder: Path) -> None:
    async with InProcessSystem(random_model_folder, ONE_OF_EACH) as system:
        stream = system.client.stream("what?", images=[picture("red")], max_tokens=2_000, ignore_eos=True)
        async for _ in stream:
            break
        stream.cancel()
        await system.wait_until_nothing_is_held()
        [decode] = system.ids(StageName.DECODE)
        assert (await system.info(decode)).language.generated_tokens < 2_000
