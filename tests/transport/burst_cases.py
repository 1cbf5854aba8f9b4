"""200 requests at once against one encoder, each with a picture of its own: none lost, none with another's picture."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

import torch
from harness import InProcessSystem
from PIL import Image, ImageDraw

from router.control.membership import StageName

NUM_REQUESTS = 200
SAMPLING = {"max_tokens": 6, "ignore_eos": True, "logprobs": 0}


def pictures(count: int) -> list[Image.Image]:
    """No two alike: size, ground and a few shapes are drawn at random."""
    source = random.Random(7)

    def color() -> tuple[int, int, int]:
        return (source.randrange(256), source.randrange(256), source.randrange(256))

    made = []
    for _ in range(count):
        image = Image.new("RGB", (source.choice((28, 56, 84)), source.choice((28, 56))), color())
        drawing = ImageDraw.Draw(image)
        for _ in range(4):
            x, y = source.randrange(image.width - 8), source.randrange(image.height - 8)
            drawing.rectangle((x, y, x + source.randrange(8, 40), y + source.randrange(8, 40)), fill=color())
        made.append(image)
    return made


@dataclass(frozen=True)
class Told:
    tokens: tuple[int, ...]
    logprobs: torch.Tensor


async def ask(system: InProcessSystem, image: Image.Image) -> Told:
    answer = await system.client.ask("what is it?", images=[image], timeout_s=100, **SAMPLING)
    return Told(answer.token_ids, torch.tensor([each.logprob for each in answer.logprobs], dtype=torch.float64))


async def ask_all_at_once(system: InProcessSystem, lane: str) -> None:
    """Everything travels over `lane`; each answer is that of its own picture alone; nothing stays. The encoder must
    have no cache, or the second time would show nothing."""
    images = pictures(NUM_REQUESTS)
    begun_s = time.monotonic()
    answers = await asyncio.gather(*(ask(system, image) for image in images))
    seconds = time.monotonic() - begun_s
    await system.wait_until_nothing_is_held(20)
    info = await system.info(system.ids(StageName.ENCODER)[0])
    assert info.encoder.encoded_items == NUM_REQUESTS and info.leases.expired_leases == 0

    # Log probabilities tell the pictures apart where tokens do not.
    alone = [await ask(system, image) for image in images]
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in alone]
    distances = torch.cdist(
        torch.stack([answer.logprobs for answer in answers]), torch.stack([answer.logprobs for answer in alone])
    )
    assert distances.argmin(1).tolist() == list(range(NUM_REQUESTS)) and distances.diagonal().max() < 1e-3
    await system.wait_until_nothing_is_held(20)
    counters = [each for actor_id in system.actor_ids for each in (await system.info(actor_id)).lane_counters]
    assert sum(each.num_failures for each in counters) == 0
    # Once for each at least: the second time its pages may be in the prefix cache before its embedding is here.
    assert sum(each.num_transfers for each in counters) >= NUM_REQUESTS
    assert {each.lane for each in counters if each.num_transfers} == {lane}
    num_transfers = sum(each.num_transfers for each in counters)
    print(
        f"{NUM_REQUESTS} requests at once: {seconds:.1f} s, all with their own pictures (log probabilities within "
        f"{distances.diagonal().max():.1e}), {num_transfers} transfers over {lane}"
    )
