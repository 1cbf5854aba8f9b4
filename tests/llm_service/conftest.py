"""The small model, made once, and engines over it."""

from __future__ import annotations

import pytest
from engine_helpers import MakeEngine, Model, SteppedEngine, make_model

from triptych.config import LanguageSection


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("llm") / "model")


@pytest.fixture
def make_engine(model: Model) -> MakeEngine:
    """An engine of 200 pages of 8 tokens, unless the section's values are given."""

    def make(max_sequence_tokens: int = 512, **section: object) -> SteppedEngine:
        values = {"page_size": 8, "num_pages": 200} | section
        return SteppedEngine(model, LanguageSection.model_validate(values), max_sequence_tokens)

    return make
