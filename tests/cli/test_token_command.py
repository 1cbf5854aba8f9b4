"""`triptych token new`, and the token that the other commands take from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli.app import app
from triptych.config import CLIENT_VARIABLES, DeploymentConfig
from triptych.errors import ConfigurationError
from triptych.rpc.access import Access


def test_a_token_is_printed_once_and_its_line_works(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    arguments = ["token", "new", "alice", "--admin", "--max-in-flight", "3", "--file", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    token = result.output.splitlines()[0].rpartition(" ")[2]
    caller = Access(str(file)).caller(f"Bearer {token}")
    assert (caller.name, caller.is_admin, caller.record.max_in_flight) == ("alice", True, 3)


def test_without_a_file_the_line_is_for_the_operator_to_keep(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["token", "new", "bob"])
    _, line = result.output.splitlines()
    file = tmp_path / "tokens"
    file.write_text(line.partition(": ")[2])
    with pytest.raises(ConfigurationError, match="already"):
        CliRunner().invoke(app, ["token", "new", "bob", "--file", str(file)], catch_exceptions=False)


def test_what_clients_read_from_the_environment_is_no_configuration() -> None:
    assert DeploymentConfig.from_sources(environment=dict.fromkeys(CLIENT_VARIABLES, "x")) == DeploymentConfig()
