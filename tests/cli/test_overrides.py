"""From flags to the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.cli.overrides import deployment_config
from triptych.config import DeploymentConfig, Mode
from triptych.errors import ConfigurationError


def replicas(config: DeploymentConfig) -> tuple[int, int, int, int]:
    stages = config.stages
    return (
        stages.encoder.replicas,
        stages.prefill.replicas,
        stages.decode.replicas,
        stages.prefill_decode.replicas,
    )


def test_nothing_said_is_one_of_each() -> None:
    assert replicas(deployment_config()) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"encoders": 2, "decodes": 3}, (2, 1, 3, 0)),
        # Alone, actors that do both take the place of those that do one.
        ({"prefill_decodes": 2}, (1, 0, 0, 2)),
        ({"prefill_decodes": 1, "prefills": 1, "decodes": 1}, (1, 1, 1, 1)),
        ({"prefill_decodes": 0}, (1, 1, 1, 0)),
        ({"mode": "colocated"}, (0, 0, 0, 1)),
        ({"mode": "colocated", "prefill_decodes": 3}, (0, 0, 0, 3)),
        ({"mode": "colocated", "encoders": 0}, (0, 0, 0, 1)),
    ],
)
def test_numbers_of_actors(flags: dict[str, object], expected: tuple[int, int, int, int]) -> None:
    assert replicas(deployment_config(**flags)) == expected  # type: ignore[arg-type]


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text("model: {path: /models/a, name: a}\nrouter: {port: 1234, host: 0.0.0.0}\n")
    config = deployment_config(file, "/models/b", port=0, address="auto")
    assert (config.model.path, config.model.name) == ("/models/b", "a")
    assert (config.router.host, config.router.port, config.control.address) == ("0.0.0.0", 0, "auto")
    assert config.mode is Mode.DISAGGREGATED


def test_stages_that_the_mode_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--encoders 2: in mode colocated .*--prefill-decodes"):
        deployment_config(mode="colocated", encoders=2)


@pytest.mark.parametrize("example", sorted((Path(__file__).parents[2] / "examples" / "config").glob("*.yaml")))
def test_the_example_files_are_valid(example: Path) -> None:
    deployment_config(example)


def test_there_are_example_files() -> None:
    assert len(list((Path(__file__).parents[2] / "examples" / "config").glob("*.yaml"))) >= 4
