"""The small model, made once; engines over it, and actors that serve it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from engine_helpers import MakeEngine, Model, SteppedEngine, make_model
from service_helpers import Cluster

from triptych.config import LanguageSection
from triptych.switch import SWITCH


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("llm") / "model")


@pytest.fixture(params=[0, 1], ids=["plain", "overlapped"])
def make_engine(model: Model, request: pytest.FixtureRequest) -> MakeEngine:
    """An engine of 200 pages of 8 tokens, unless the section's values are given; each test runs with the plain loop,
    and with one step in flight while the next is scheduled."""

    def make(max_sequence_tokens: int = 512, **section: object) -> SteppedEngine:
        values = {"page_size": 8, "num_pages": 200} | section
        return SteppedEngine(model, LanguageSection.model_validate(values), max_sequence_tokens, request.param)

    return make


@pytest.fixture
async def cluster(model: Model, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv(SWITCH, "1")
    async with Cluster(model) as cluster:
        yield cluster
