"""RouterProcesses: begins the other processes of a router, replaces those that die, ends them all."""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path

from triptych.config import DeploymentConfig
from triptych.errors import Unavailable

logger = logging.getLogger(__name__)

# What a process writes to its standard output when it listens.
READY = "ready\n"
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 30.0
# A process that lived that long did not die of its start: its successor is begun without a longer pause.
_LONG_LIFE_S = 60.0


class RouterProcesses:
    """Lives on one event loop of the first process.

    They end when `stop` says so, and also when this process ends in any way: each reads from a pipe that only it holds.
    """

    def __init__(self, config: DeploymentConfig, folder: Path) -> None:
        """`config` is the share of each, with the ports that this process got; `folder` has their sockets."""
        self._config = config
        self._folder = folder
        self._running: dict[int, Process] = {}
        self._supervisors: list[asyncio.Task[None]] = []

    @property
    def process_ids(self) -> list[int]:
        """Of those that run."""
        return [process.pid for process in self._running.values()]

    async def start(self) -> None:
        """Returns when all listen; raises Unavailable when one does not. `stop` them then too."""
        numbers = range(1, self._config.router.processes)
        processes = await asyncio.gather(*map(self._begin, numbers))
        for number, process in zip(numbers, processes, strict=True):
            self._supervisors.append(asyncio.create_task(self._supervise(number, process)))

    async def stop(self, grace_s: float) -> None:
        """Ends all: politely for `grace_s`, then by force. Idempotent."""
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        await asyncio.gather(*(_end(process, grace_s) for process in self._running.values()))
        self._running.clear()

    async def _begin(self, number: int) -> Process:
        """A process that listens."""
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "router.processes",
            str(self._folder),
            str(number),
            level,
            stdin=PIPE,
            stdout=PIPE,
        )
        self._running[number] = process
        assert process.stdin is not None and process.stdout is not None
        try:
            async with asyncio.timeout(self._config.control.start_timeout_s):
                process.stdin.write(self._config.model_dump_json().encode() + b"\n")
                with suppress(ConnectionError):
                    await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError:
            process.kill()
            line = b""
        if line.decode() != READY:
            status = await process.wait()
            raise Unavailable(
                f"router process {number} ended with status {status} before it was ready; its log says why",
                field="router.processes",
            )
        return process

    async def _supervise(self, number: int, process: Process) -> None:
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        while True:
            began_s = loop.time()
            status = await process.wait()
            logger.warning("router process %d ended with status %d, another takes its place", number, status)
            pause_s = _FIRST_PAUSE_S if loop.time() - began_s > _LONG_LIFE_S else min(2 * pause_s, _MAX_PAUSE_S)
            while True:
                await asyncio.sleep(pause_s)
                try:
                    process = await self._begin(number)
                    break
                except (Unavailable, OSError) as error:
                    pause_s = min(2 * pause_s, _MAX_PAUSE_S)
                    logger.warning("%s; the next try in %.1f s", error, pause_s)


async def _end(process: Process, grace_s: float) -> None:
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
