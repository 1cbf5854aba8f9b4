"""The command itself: quick help, and what a person sees while actors start."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from router.cli.app import app
from router.cli.progress import StartProgress
from router.cli.terminal_picture import half_blocks
from triptych.v1 import admin_pb2, common_pb2

HEAVY = ("torch", "ray", "transformers", "grpc", "pydantic", "av")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['triptych', '--help']\n"
        "from router.cli import main\n"
        "try: main()\n"
        f"finally: print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "HEAVY []" in result.stdout
    for command in ("serve", "chat", "demo", "doctor", "topology", "scale"):
        assert command in result.stdout


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout.startswith("triptych")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_says_how_many_are_ready(is_terminal: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=120)
    ready = admin_pb2.ActorStatus(state=admin_pb2.ACTOR_STATE_READY)
    starting = admin_pb2.ActorStatus(state=admin_pb2.ACTOR_STATE_STARTING)
    stages = [
        admin_pb2.StageStatus(stage=common_pb2.STAGE_ENCODER, wanted_actors=2, actors=[ready, starting]),
        admin_pb2.StageStatus(stage=common_pb2.STAGE_PREFILL_DECODE),
    ]
    with StartProgress(console) as progress:
        progress(stages)
        progress(stages)
    assert "encoder 1/2" in output.getvalue()
    assert "prefill_decode" not in output.getvalue()
    if not is_terminal:
        assert output.getvalue().count("encoder") == 1, "the same line must not come twice"


def test_half_blocks_show_two_pixels_a_cell() -> None:
    picture = Image.new("RGB", (2, 4))
    picture.paste((255, 0, 0), (0, 0, 2, 1))
    picture.paste((0, 0, 255), (0, 1, 2, 2))
    text = half_blocks([picture], rows=2)
    assert text.plain == "▀▀\n▀▀\n"
    style = text.spans[0].style
    assert style.color.triplet == (255, 0, 0) and style.bgcolor.triplet == (0, 0, 255)


def test_pictures_stand_side_by_side() -> None:
    pictures = [Image.new("RGB", (40, 20)), Image.new("RGB", (20, 20))]
    lines = half_blocks(pictures, rows=5).plain.splitlines()
    assert len(lines) == 5 and {len(line) for line in lines} == {20 + 2 + 10}
