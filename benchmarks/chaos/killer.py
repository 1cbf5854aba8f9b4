"""Kills a random actor process every few seconds."""

from __future__ import annotations

import asyncio
import os
import signal
from random import Random

from triptych.client import AsyncClient
from triptych.errors import TriptychError
from triptych.v1 import admin_pb2


class Killer:
    """SIGKILL for one ready actor at a time; the last one of a stage too. `num_kills` counts them."""

    def __init__(self, client: AsyncClient, random: Random, interval_s: tuple[float, float]) -> None:
        self.num_kills = 0
        self._client = client
        self._random = random
        self._interval_s = interval_s

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._random.uniform(*self._interval_s))
            process_id = await self._victim()
            if process_id:
                os.kill(process_id, signal.SIGKILL)
                self.num_kills += 1

    async def _victim(self) -> int:
        try:
            topology = await self._client.topology()
            ready = [
                actor.actor_id
                for stage in topology.stages
                for actor in stage.actors
                if actor.state == admin_pb2.ACTOR_STATE_READY
            ]
            return (await self._client.actor_info(self._random.choice(ready))).process_id if ready else 0
        except TriptychError:
            return 0  # It went away by itself meanwhile.
