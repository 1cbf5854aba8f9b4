"""One running system for the tests of the HTTP API that need no other configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from http_system import HttpSystem, http_system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[HttpSystem]:
    async with http_system() as system:
        yield system
