"""The burst (see `burst_cases`) over the lanes that need no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from burst_cases import ask_all_at_once
from harness import InProcessSystem, Topology


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("topology", "lanes"),
    [(Topology(encoder=1, prefill_decode=1), ("shm", "grpc")), (Topology(encoder=1, prefill=1, decode=1), ("gloo",))],
    ids=["shm", "gloo"],
)
async def test_two_hundred_requests_at_once(
    random_model_folder: Path, topology: Topology, lanes: tuple[str, ...]
) -> None:
    encoder = {"cache_bytes": 0, "host_cache_bytes": 0}
    async with InProcessSystem(
        random_model_folder, topology, transport={"lanes": lanes}, stages={"encoder": encoder}
    ) as system:
        await ask_all_at_once(system, lanes[0])
