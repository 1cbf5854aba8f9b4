"""Asks many questions at once, and a conversation of two turns, with AsyncClient. Draws its own pictures.

triptych serve --encoders 2                      # in another terminal
python examples/many_questions.py
"""

from __future__ import annotations

import asyncio
import sys
import time
from random import Random

from triptych.client import AsyncClient, assistant, image, user
from triptych.demo.pictures import draw, random_scene

NUM_QUESTIONS = 32


async def main(endpoint: str) -> None:
    rng = Random(0)
    pictures = [draw(random_scene(rng, 112, 112, rng.randint(1, 4))) for _ in range(NUM_QUESTIONS)]
    async with AsyncClient(endpoint) as client:
        begun = time.monotonic()
        answers = await asyncio.gather(
            *(client.ask("What is in the picture?", images=[picture], temperature=0.0) for picture in pictures)
        )
        seconds = time.monotonic() - begun
        encoders = {encoder for answer in answers for encoder in answer.route.encoder_actors}
        print(f"{len(answers)} answers in {seconds:.2f} s by {len(encoders)} encoder(s); the first: {answers[0].text}")

        first = user(image(pictures[0]), "What is in the picture?")
        second = await client.chat([first, assistant(answers[0].text), user("How many shapes are there?")])
        print(f"and in a second turn: {second.text}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"))
