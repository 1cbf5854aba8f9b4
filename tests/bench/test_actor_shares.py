"""Shares of a core: what a process may still use, and a busy process that is held to its share."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.actor_shares.bucket import ShareBucket
from benchmarks.actor_shares.governor import Governor, cpu_s

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the CPU clock of another process")


def test_who_used_its_share_waits_until_it_has_filled_again() -> None:
    bucket = ShareBucket(0.25, now_s=10.0, used_s=7.0)
    assert bucket.may_run(10.01, 7.0)
    assert not bucket.may_run(10.01, 7.1), "0.1 s used, 0.0025 s filled"
    assert not bucket.may_run(10.3, 7.1)
    assert bucket.may_run(10.5, 7.1), "0.1 s at a quarter fill in 0.4 s"


def test_a_rest_is_no_head_start() -> None:
    bucket = ShareBucket(0.25, now_s=0.0, used_s=0.0)
    assert bucket.may_run(1_000.0, 0.0)
    assert not bucket.may_run(1_000.0, 0.03)


@pytest.fixture
def busy_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@needs_linux
def test_a_busy_process_gets_its_share_and_no_more(busy_process: subprocess.Popen[bytes]) -> None:
    command = [sys.executable, "-m", "benchmarks.actor_shares.governor", "0.1"]
    governor = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    assert governor.stdin is not None
    try:
        print(busy_process.pid, file=governor.stdin, flush=True)
        _wait_for(lambda: _state(busy_process.pid) == "T")
        begin_s, before_s = time.monotonic(), cpu_s(busy_process.pid)
        time.sleep(0.5)
        used = (cpu_s(busy_process.pid) - before_s) / (time.monotonic() - begin_s)
        # However busy the machine: never much above its share, and it goes on sometimes.
        assert used < 0.3
        _wait_for(lambda: cpu_s(busy_process.pid) > before_s)
        governor.stdin.close()
        assert governor.wait(timeout=10) == 0
        _wait_for(lambda: _state(busy_process.pid) != "T")
    finally:
        governor.kill()
        governor.wait()


@needs_linux
def test_a_process_that_ended_is_forgotten(busy_process: subprocess.Popen[bytes]) -> None:
    governor = Governor(0.1)
    governor.add(busy_process.pid)
    busy_process.kill()
    busy_process.wait()
    governor.look()
    governor.add(busy_process.pid)
    governor.release()
    with pytest.raises(OSError):
        cpu_s(busy_process.pid)


def _state(process_id: int) -> str:
    with open(f"/proc/{process_id}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def _wait_for(is_so, timeout_s: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.01)
