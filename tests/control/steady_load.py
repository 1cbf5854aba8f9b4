"""Clients that ask until they are told to stop, and remember every answer and every failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import TracebackType

from triptych.client import AsyncClient
from triptych.demo.pictures import draw, random_scene
from triptych.errors import TriptychError

NUM_TOKENS = 24


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Returns when the condition holds; raises TimeoutError when that takes too long."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s: {condition.__qualname__}")
        await asyncio.sleep(0.02)


class SteadyLoad:
    """`num_clients` at once, every other request with a picture. A context: at its end all requests have ended."""

    def __init__(self, client: AsyncClient, num_clients: int = 3, seed: str = "steady") -> None:
        self._client = client
        self._num_clients = num_clients
        self._random = random.Random(seed)
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []
        self.lengths: list[int] = []
        self.attempts: list[int] = []
        self.failures: list[TriptychError] = []

    @property
    def num_answers(self) -> int:
        return len(self.lengths)

    async def answers_more(self, count: int, timeout_s: float = 60.0) -> None:
        """Returns when so many more requests were answered than now."""
        goal = self.num_answers + count
        await until(lambda: self.num_answers >= goal or bool(self.failures), timeout_s)
        assert not self.failures, self.failures

    def assert_none_lost(self) -> None:
        assert not self.failures, self.failures
        assert set(self.lengths) == {NUM_TOKENS}

    async def __aenter__(self) -> SteadyLoad:
        self._tasks = [asyncio.create_task(self._ask_on(number)) for number in range(self._num_clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _ask_on(self, number: int) -> None:
        while not self._is_over:
            number += 1
            images = [draw(random_scene(self._random, 112, 112, 2))] if number % 2 else []
            try:
                answer = await self._client.ask("Describe it.", images=images, max_tokens=NUM_TOKENS, ignore_eos=True)
            except TriptychError as failure:
                self.failures.append(failure)
                return
            self.lengths.append(len(answer.token_ids))
            self.attempts.append(answer.route.attempts)
