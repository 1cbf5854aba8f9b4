"""One split and one colocated system for each module of attacks; the small model that is shipped."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from actor_calls import ActorCalls
from attack_helpers import Attacker
from harness import COLOCATED, ONE_OF_EACH, InProcessSystem

from triptych.models_folder import BUILT_IN_FOLDER


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[ONE_OF_EACH, COLOCATED], ids=str)
async def attacker(request: pytest.FixtureRequest) -> AsyncIterator[Attacker]:
    async with InProcessSystem(BUILT_IN_FOLDER, request.param, transport={"unknown_ticket_wait_s": 0.5}) as system:
        attacker = Attacker(system)
        await attacker.check_aftermath()
        yield attacker
        await attacker.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calls() -> AsyncIterator[ActorCalls]:
    """Straight to the actors of a split system whose waits and shared memory are short."""
    transport = {"unknown_ticket_wait_s": 0.2, "shared_memory_bytes": 2**18}
    async with InProcessSystem(BUILT_IN_FOLDER, ONE_OF_EACH, transport=transport) as system:
        attacker = Attacker(system)
        await attacker.check_aftermath()
        calls = ActorCalls(attacker)
        yield calls
        await calls.close()
        await attacker.close()
