"""`triptych top`: what two samples say, and the view in a real terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte
import pytest
from fake_router import FakeRouter, serving
from rich.console import Console
from typer.testing import CliRunner

from router.cli.app import app
from router.cli.top.frame import Frames, curve
from router.cli.top.panels import in_bytes, panel_views, short
from router.cli.top.sample import Sample, Window, median
from triptych.v1 import admin_pb2, common_pb2

READY = admin_pb2.ACTOR_STATE_READY


def sample(taken_s: float, tokens: int, *, ttft: tuple[int, int, int] = (0, 0, 0), num_decodes: int = 1) -> Sample:
    """An encoder, a prefill actor and decode actors, all further along the higher `tokens` is."""
    infos = {
        "encoder-aa": admin_pb2.ActorInfo(
            encoder=admin_pb2.EncoderCounters(
                accepted_items=tokens, cache_hits=tokens // 4, encoded_patches=100 * tokens, max_pending_patches=1_000
            )
        ),
        "prefill-bb": admin_pb2.ActorInfo(
            language=admin_pb2.LanguageCounters(prompt_tokens=10 * tokens, cached_prompt_tokens=tokens, total_pages=64)
        ),
    }
    for number in range(num_decodes):
        infos[f"decode-{number}"] = admin_pb2.ActorInfo(
            language=admin_pb2.LanguageCounters(
                generated_tokens=tokens, running_requests=2, held_pages=62, total_pages=64
            ),
            lane_counters=[
                admin_pb2.LaneCounters(
                    lane="shm", num_transfers=tokens, num_bytes=1_000 * tokens, seconds=tokens / 500
                ),
                admin_pb2.LaneCounters(lane="grpc"),
            ],
        )
    stages = []
    for stage, name in (
        (common_pb2.STAGE_ENCODER, "encoder"),
        (common_pb2.STAGE_PREFILL, "prefill"),
        (common_pb2.STAGE_DECODE, "decode"),
    ):
        ids = [actor_id for actor_id in infos if actor_id.startswith(name)]
        for actor_id in ids:
            infos[actor_id].actor_id, infos[actor_id].stage, infos[actor_id].state = actor_id, stage, READY
        actors = [admin_pb2.ActorStatus(actor_id=actor_id, state=READY) for actor_id in ids]
        stages.append(admin_pb2.StageStatus(stage=stage, wanted_actors=len(ids), actors=actors))
    histogram = admin_pb2.Histogram(upper_bounds_s=[0.1, 0.2, float("inf")], counts=ttft)
    router = admin_pb2.RouterCounters(running_requests=2, answered_requests=tokens, time_to_first_token=histogram)
    topology = admin_pb2.GetTopologyResponse(mode="disaggregated", model="tiny", stages=stages, router=router)
    return Sample(taken_s, topology, infos)


def window(*samples: Sample) -> Window:
    window = Window()
    for one in samples:
        window.add(one)
    return window


def test_rates_are_of_the_last_seconds_alone() -> None:
    seen = window(sample(0, 0), sample(10, 1_000), sample(12, 1_010), sample(15, 1_025))
    encode, prefill, decode = panel_views(seen)
    assert (encode.rate, prefill.rate, decode.rate) == (500.0, 50.0, 5.0)
    facts = dict(decode.facts)
    assert facts["lane shm"] == "5 kB/s, 2 ms" and "lane grpc" not in facts
    assert facts["streams"] == "2 run, 0 wait"
    assert dict(encode.facts)["cache hits"] == "24 %" and dict(prefill.facts)["prefix hits"] == "10 %"
    assert decode.bars[0].value == 62 and decode.rows[0].fill > 0.9


def test_an_actor_that_is_new_has_a_rate_of_its_own() -> None:
    decode = panel_views(window(sample(0, 100), sample(2, 120, num_decodes=2), sample(4, 140, num_decodes=2)))[2]
    assert [row.rate for row in decode.rows] == [10.0, 10.0]


def test_the_median_is_of_what_came_in_between() -> None:
    seen = window(sample(0, 0, ttft=(100, 0, 0)), sample(5, 0, ttft=(100, 4, 0)))
    assert seen.median_s(lambda router: router.time_to_first_token) == pytest.approx(0.15)
    assert window(sample(0, 0, ttft=(9, 9, 9))).median_s(lambda router: router.time_to_first_token) is None
    assert median([0.1, float("inf")], [1, 5]) == 0.1


def test_actors_with_a_tower_stand_in_the_panel_encode() -> None:
    info = admin_pb2.ActorInfo(
        actor_id="prefill-decode-aa",
        stage=common_pb2.STAGE_PREFILL_DECODE,
        state=READY,
        encoder=admin_pb2.EncoderCounters(pending_patches=7),
        language=admin_pb2.LanguageCounters(total_pages=8),
    )
    status = admin_pb2.StageStatus(
        stage=info.stage, wanted_actors=1, actors=[admin_pb2.ActorStatus(actor_id=info.actor_id, state=READY)]
    )
    views = panel_views(window(Sample(0.0, admin_pb2.GetTopologyResponse(stages=[status]), {info.actor_id: info})))
    assert [[row.actor_id for row in view.rows] for view in views] == [[info.actor_id]] * 3
    assert views[0].rows[0].load == 7 and views[0].num_wanted == 1


@pytest.mark.parametrize(("width", "height"), [(60, 40), (100, 30), (160, 40), (84, 16)])
def test_a_frame_fits_its_terminal(width: int, height: int) -> None:
    frames, seen = Frames(), Window()
    for number in range(4):
        seen.add(sample(number, 10 * number, num_decodes=30))
        frames.note(seen)
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(frames.draw(seen, width, height))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) <= height and max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(name in text for name in ("encode", "prefill", "decode", "TTFT p50", "q quits"))
    if height == 30:
        assert "more" in text


def test_numbers_and_curves() -> None:
    assert [short(value) for value in (0, 12, 999, 1_500, 262_144, 3.1e6)] == [
        "0",
        "12",
        "999",
        "1.5 k",
        "262 k",
        "3.1 M",
    ]
    assert [in_bytes(value) for value in (0, 1_500)] == ["0 B", "1.5 kB"]
    assert curve([0, 1, 2, 4], 3) == "▂▄█"
    assert curve([0.0, 0.0], 9) == "▁▁"


def test_once_prints_one_frame_and_ends() -> None:
    with serving(FakeRouter()) as endpoint:
        result = CliRunner().invoke(app, ["top", "--once", "--interval", "0.1", "-e", endpoint], catch_exceptions=False)
    assert result.exit_code == 0
    assert "1 of 2" in result.output and "starting" in result.output and "\x1b" not in result.output


def _take_terminal() -> None:
    """In the child: stdin controls it, and Ctrl-C is what it is at a shell, whoever started the tests."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`triptych top` in a terminal of its own, and what stands on its screen."""

    def __init__(self, endpoint: str, width: int, height: int) -> None:
        self._screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self._screen)
        self._end, end = pty.openpty()
        self._set_size(width, height)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "router.cli", "top", "-e", endpoint, "--interval", "0.1"],
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
            preexec_fn=_take_terminal,
        )
        self.modes_before = termios.tcgetattr(end)[3]
        self._terminal = end

    def wait_for(self, *texts: str) -> list[str]:
        """Lines of the screen once all `texts` stand there."""
        deadline = time.monotonic() + 30
        while not all(text in "\n".join(self._screen.display) for text in texts):
            assert time.monotonic() < deadline, "\n".join(self._screen.display)
            if select.select([self._end], [], [], 0.2)[0]:
                self._stream.feed(os.read(self._end, 65_536))
        return [line.rstrip() for line in self._screen.display]

    def resize(self, width: int, height: int) -> None:
        self._screen.resize(height, width)
        self._screen.reset()
        self._set_size(width, height)

    def type(self, keys: bytes) -> int:
        """Returns the exit status."""
        deadline = time.monotonic() + 30
        next_press = 0.0
        while self.process.poll() is None and time.monotonic() < deadline:
            # An interrupt that falls into a callback of the runtime is lost there: people press again.
            if time.monotonic() >= next_press:
                os.write(self._end, keys)
                next_press = time.monotonic() + 3
            if select.select([self._end], [], [], 0.05)[0]:
                os.read(self._end, 65_536)
        return self.process.wait(1)

    def modes(self) -> int:
        return int(termios.tcgetattr(self._terminal)[3])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)
        os.close(self._terminal)

    def _set_size(self, width: int, height: int) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_in_a_real_terminal(key: bytes) -> None:
    with serving(FakeRouter()) as endpoint:
        terminal = Terminal(endpoint, 100, 30)
        try:
            lines = terminal.wait_for("encode 1 of 2", "decode 1 of 1", "q quits")
            assert lines[28].startswith(" q quits") and lines[2].count("╭") == 3
            terminal.resize(160, 40)
            # A frame of the old width may still be on its way.
            terminal.wait_for("q quits", "─" * 50)
            assert terminal.type(key) == 0
            assert terminal.modes() == terminal.modes_before
        finally:
            terminal.close()
