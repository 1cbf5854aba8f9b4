"""Ray clusters of several nodes with GPUs that are none, each in a process of its own beside the suite's cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).with_name("several_nodes.py")


def run(case: str) -> str:
    """What it printed."""
    folders = [str(SCRIPT.parent), str(SCRIPT.parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), case], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def test_a_lost_node_takes_the_controller_and_no_request_with_it() -> None:
    said = run("node_loss")
    assert "obstacle: the cluster lacks GPUs (1 an actor, 0 free)" in said
    assert "answers" in said


def test_actors_without_a_place_bring_nodes_and_go_with_them() -> None:
    said = run("autoscaler")
    assert "nodes with a GPU: 1, then 2, then 1" in said
