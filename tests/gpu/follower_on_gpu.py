"""A follower in a process of its own: `python follower_on_gpu.py CONFIGURATION RENDEZVOUS`, on the GPU it can see."""

from __future__ import annotations

import asyncio
import sys

from llm_service.parallel.follower_actor import FollowerActor
from triptych.config import DeploymentConfig


async def main() -> None:
    actor = FollowerActor(DeploymentConfig.model_validate_json(sys.argv[1]), "decode", 1)
    await actor.start(sys.argv[2])
    assert actor._follower is not None
    await asyncio.wrap_future(actor._follower.ended)


if __name__ == "__main__":
    asyncio.run(main())
