"""Whatever ends the command, no process stays: Ctrl-C, a second Ctrl-C, and SIGKILL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from router.control.orphan_guard import processes_of
from triptych.client import Client

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

START_TIMEOUT_S = 90.0
OPEN_CLUSTER = """
import sys, time
from router.control.cluster import Cluster
from triptych.config import DeploymentConfig
with Cluster.open(DeploymentConfig.from_sources(environment={})):
    print("Triptych serves", flush=True)
    time.sleep(100)
"""


class Command:
    """A command of its own session, with everything it printed and every process it started."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.started: set[int] = set()

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while words not in self.log.read_text():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        self.started = descendants(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def left(self) -> set[str]:
        """Names of what was started and is still there."""
        return {name for pid in self.started if (name := running_name(pid))}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def descendants(pid: int) -> set[int]:
    children = set(processes_of(pid))
    return children.union(*(descendants(child) for child in children)) if children else set()


def running_name(pid: int) -> str:
    """Empty for a process that ended, also when nobody has asked for its exit status yet."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    match = re.search(r"^Name:\s*(.*)\nUmask:.*\nState:\s*(\w)", status, re.MULTILINE)
    return "" if match is None or match.group(2) == "Z" else match.group(1)


def slabs_of(actor_ids: list[str]) -> list[str]:
    """Shared memory files of these actors."""
    return [name for name in os.listdir("/dev/shm") if any(actor_id in name for actor_id in actor_ids)]


def assert_all_gone(command: Command, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while left := command.left():
        assert time.monotonic() < deadline, f"still there after {timeout_s} s: {left}"
        time.sleep(0.1)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        command.end()


def serve(commands: list[Command], model_folder: Path, log: Path) -> tuple[Command, list[str]]:
    """A running system, and the ids of its actors."""
    command = Command(
        ["-m", "router.cli", "serve", "--model", str(model_folder), "--port", "0", "--http-port", "0"], log
    )
    commands.append(command)
    command.wait_for("Triptych serves")
    endpoint = re.search(r"at (127\.0\.0\.1:\d+)", log.read_text())
    assert endpoint is not None
    with Client(endpoint.group(1)) as client:
        actor_ids = [actor.actor_id for stage in client.topology().stages for actor in stage.actors]
        # An actor makes its shared memory when its first tensor goes out.
        client.ask("What is in the picture?", images=[Image.new("RGB", (56, 56), "red")], max_tokens=2)
    assert slabs_of(actor_ids), "the actors have none: the checks of the tests could not fail"
    return command, actor_ids


def test_ctrl_c_ends_everything(commands: list[Command], random_model_folder: Path, tmp_path: Path) -> None:
    command, actor_ids = serve(commands, random_model_folder, tmp_path / "log")
    names = {running_name(pid) for pid in command.started}
    # Names are cut at 15 characters.
    assert {"raylet", "gcs_server", "ray::NodeEncode", "ray::NodeLlmAct"} <= names
    command.send(signal.SIGINT)
    assert command.wait(30.0) == 0, command.log.read_text()
    assert_all_gone(command, 2.0)
    assert "Traceback" not in command.log.read_text()
    assert slabs_of(actor_ids) == []


def test_a_second_ctrl_c_ends_everything_at_once(
    commands: list[Command], random_model_folder: Path, tmp_path: Path
) -> None:
    command, actor_ids = serve(commands, random_model_folder, tmp_path / "log")
    command.send(signal.SIGINT)
    time.sleep(0.1)
    command.send(signal.SIGINT)
    assert command.wait(5.0) == 130, command.log.read_text()
    assert "Traceback" not in command.log.read_text()
    assert_all_gone(command, 40.0)  # The guard looks for shared memory for some seconds.
    # An actor that was killed gives its memory up when the kernel has buried it: then the guard takes it away.
    assert slabs_of(actor_ids) == []


def test_after_sigkill_the_guard_removes_shared_memory(
    commands: list[Command], random_model_folder: Path, tmp_path: Path
) -> None:
    command, actor_ids = serve(commands, random_model_folder, tmp_path / "log")
    command.send(signal.SIGKILL)
    command.wait(5.0)
    assert_all_gone(command, 40.0)
    deadline = time.monotonic() + 40.0  # The guard starts a process for that, which loads torch.
    while slabs := slabs_of(actor_ids):
        assert time.monotonic() < deadline, f"still there: {slabs}"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_local_cluster_ends_with_the_process_that_started_it(
    commands: list[Command], tmp_path: Path, number: signal.Signals
) -> None:
    command = Command(["-c", OPEN_CLUSTER], tmp_path / "log")
    commands.append(command)
    command.wait_for("Triptych serves")
    assert len(command.started) >= 4
    command.send(number)
    command.wait(10.0)
    # Without the guard Ray's agents stay for 80 s.
    assert_all_gone(command, 40.0)
