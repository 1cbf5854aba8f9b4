"""The small model, made once, and engines over it."""

from __future__ import annotations

import pytest
from engine_helpers import MakeEngine, Model, SteppedEngine, make_model

from triptych.config import LanguageSection


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
