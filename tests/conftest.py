"""Fixtures that several rooms share. Tests import `harness` from here, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from router.control.cluster import Cluster


@pytest.fixture(scope="session")
def random_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the small model's architecture and tokenizer, float32."""
    from harness import write_random_model

    folder = tmp_path_factory.mktemp("random") / "model"
    write_random_model(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """The one local Ray cluster of a test run; starts with the first test that asks for it."""
    from router.control.cluster import Cluster
    from triptych.config import DeploymentConfig

    with Cluster.open(DeploymentConfig.from_sources(environment={})) as cluster:
        yield cluster
