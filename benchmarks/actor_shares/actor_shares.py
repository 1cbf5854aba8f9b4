"""ActorShares: every actor of a running system gets a share of a core as soon as it serves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from types import TracebackType

from benchmarks.actor_shares.processes import ready_actors
from triptych.client import AsyncClient
from triptych.errors import TriptychError

_LOOK_S = 0.1


class ActorShares:
    """While it is open. What an actor does before it serves is not held back: it takes what the cores have left."""

    def __init__(self, client: AsyncClient, share: float) -> None:
        self._client = client
        self._share = share
        self._process_ids: dict[str, int] = {}
        self._governor: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ActorShares:
        command = (sys.executable, "-m", "benchmarks.actor_shares.governor", str(self._share))
        self._governor = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        await self._look()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        governor, watching = self._governor, self._watching
        assert governor is not None and governor.stdin is not None and watching is not None
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        governor.stdin.close()
        try:
            async with asyncio.timeout(5.0):
                await governor.wait()
        except TimeoutError:
            governor.kill()
        for process_id in self._process_ids.values():
            _let_go_on(process_id)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """Tells the governor of actors that are new. One that turned has another id and the process that it had."""
        assert self._governor is not None and self._governor.stdin is not None
        try:
            for actor_id in (await ready_actors(self._client)).keys() - self._process_ids.keys():
                info = await self._client.actor_info(actor_id)
                if info.process_id not in self._process_ids.values():
                    self._governor.stdin.write(f"{info.process_id}\n".encode())
                self._process_ids[actor_id] = info.process_id
        except TriptychError:
            # It went meanwhile; who is still there is seen at the next look.
            return


def _let_go_on(process_id: int) -> None:
    try:
        os.kill(process_id, signal.SIGCONT)
    except OSError:
        return
