"""The commands that talk to a running system, through the real command line and client."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fake_router import FakeRouter, serving
from PIL import Image
from typer.testing import CliRunner

from router.cli import main
from router.cli.app import app
from router.cli.chat import Chat
from triptych.client import Client
from triptych.v1 import common_pb2


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def endpoint(router: FakeRouter) -> Iterator[str]:
    with serving(router) as endpoint:
        yield endpoint


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (28, 28), "red").save(path)
    return path


def run(*arguments: str, text: str | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), input=text, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_chat_sends_media_before_the_question_and_prints_the_answer(
    router: FakeRouter, endpoint: str, picture: Path, tmp_path: Path
) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"not decoded here")
    arguments = ["-i", str(picture), "--image", str(picture), "--video", str(video), "what is it?"]
    assert run("chat", "-e", endpoint, *arguments) == "It is a red circle.\n"
    (message,) = router.requests[0].messages
    assert [part.WhichOneof("part") for part in message.parts] == ["image", "image", "video", "text"]
    assert message.parts[0].image.data == picture.read_bytes()
    assert message.parts[2].video.data == b"not decoded here"
    assert message.parts[3].text == "what is it?"


def test_sampling_flags_reach_the_request_and_others_stay_unset(router: FakeRouter, endpoint: str) -> None:
    run("chat", "-e", endpoint, "--temperature", "0.5", "--seed", "0", "--stop", "x", "--stop", "y", "hi")
    sampling = router.requests[0].sampling
    assert (sampling.temperature, sampling.seed, list(sampling.stop)) == (0.5, 0, ["x", "y"])
    assert sampling.HasField("seed")
    assert not sampling.HasField("max_tokens") and not sampling.HasField("top_p")


def test_system_message_comes_first(router: FakeRouter, endpoint: str) -> None:
    run("chat", "-e", endpoint, "--system", "Be brief.", "hi")
    assert [message.role for message in router.requests[0].messages] == ["system", "user"]


def test_timings_name_stages_actors_and_lanes(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(endpoint) as client:
        Chat(client, "", {}, show_timings=True).ask("hi")
    printed = capsys.readouterr()
    assert printed.out == "It is a red circle.\n"
    assert "30 prompt (16 media" in printed.err and "encode 12.5" in printed.err
    assert "encoder-1 -[shm]-> prefill prefill-1 -[grpc]-> decode decode-1" in printed.err


def test_conversation_keeps_turns_and_forgets_failed_ones(
    router: FakeRouter, endpoint: str, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["first", "second", f"/image {picture}", "third", "/clear", "fourth"])

    def next_line(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        router.failure = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full") if line == "second" else None
        return line

    monkeypatch.setattr("builtins.input", next_line)
    with Client(endpoint) as client:
        Chat(client, "", {}).talk()
    roles = [[message.role for message in request.messages] for request in router.requests]
    assert roles == [["user"], ["user", "assistant", "user"], ["user", "assistant", "user"], ["user"]]
    third = router.requests[2].messages
    assert third[1].parts[0].text == "It is a red circle."
    assert [part.WhichOneof("part") for part in third[2].parts] == ["image", "text"]


def test_a_refused_picture_is_forgotten_with_its_turn_and_named(
    router: FakeRouter,
    endpoint: str,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = iter([f"/image '{picture}'", "refused", "next", "/image"])

    def next_line(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        text = "messages[0].parts[0].image.data is not a readable image"
        router.failure = (grpc.StatusCode.INVALID_ARGUMENT, text) if line == "refused" else None
        return line

    monkeypatch.setattr("builtins.input", next_line)
    with Client(endpoint) as client:
        Chat(client, "", {}).talk()
    assert [part.WhichOneof("part") for part in router.requests[0].messages[0].parts] == ["image", "text"]
    (only,) = router.requests[1].messages
    assert [part.text for part in only.parts] == ["next"]
    printed = capsys.readouterr()
    assert printed.out == "It is a red circle.\n"
    assert f"{picture} is not a readable image (this turn and its pictures and videos are forgotten)" in printed.err
    assert "/image lacks a file, expected: /image FILE" in printed.err


def test_questions_can_be_piped_in(router: FakeRouter, endpoint: str) -> None:
    assert run("chat", "-e", endpoint, text="one\ntwo\n").count("It is a red circle.") == 2
    assert len(router.requests) == 2


def test_topology_lists_actors_also_those_that_went_away_meanwhile(endpoint: str) -> None:
    lines = run("topology", "-e", endpoint).splitlines()
    assert lines[0] == "tiny, disaggregated"
    assert "encoder: 1 ready, 2 wanted" in lines
    assert "  encoder-1  ready  127.0.0.1:1" in lines
    assert any("1.2 M visual parameters; 5 items taken (2 from cache)" in line for line in lines)
    assert "  not ready yet  starting" in lines
    assert "  decode-1  ready  127.0.0.1:2" in lines


def test_scale_grows_before_it_shrinks(router: FakeRouter, endpoint: str) -> None:
    printed = run("scale", "encoder=1", "decode=3", "-e", endpoint, "--no-wait")
    stages = [(request.stage, request.num_actors, request.wait) for request in router.scales]
    assert stages == [(common_pb2.STAGE_DECODE, 3, False), (common_pb2.STAGE_ENCODER, 1, False)]
    assert "decode: 3 ready, 3 wanted" in printed
    assert "prefill_decode: 1 ready" in run("scale", "prefill-decode=1", "-e", endpoint, "--no-wait")


def failing(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `triptych ARGUMENTS` says when it fails: one line, no traceback."""
    monkeypatch.setattr("sys.argv", ["triptych", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    message = str(exit_.value)
    assert "\n" not in message
    return message


def test_errors_are_one_line(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "no.png"
    assert "No such file" in failing(monkeypatch, "chat", "-e", endpoint, "-i", str(missing), "hi")
    assert "expected STAGE=N" in failing(monkeypatch, "scale", "encoders=3", "-e", endpoint)
    assert "is `triptych serve` running" in failing(monkeypatch, "chat", "-e", "127.0.0.1:1", "hi")
    assert "is `triptych serve` running" in failing(monkeypatch, "topology", "-e", "127.0.0.1:1")
    assert "no-such.yaml" in failing(monkeypatch, "serve", "--config", str(tmp_path / "no-such.yaml"))
    assert "config.json" in failing(monkeypatch, "serve", "--model", str(tmp_path))


def test_a_refusal_of_the_server_reaches_the_user(
    router: FakeRouter, endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    router.failure = (grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature is -1")
    assert "sampling.temperature is -1" in failing(monkeypatch, "chat", "-e", endpoint, "hi")


def test_an_answer_streams(router: FakeRouter, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []

    class Recorder(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    monkeypatch.setattr("sys.stdout", Recorder())
    with Client(endpoint) as client:
        Chat(client, "", {}).ask("hi")
    assert writes == ["It is ", "a red circle.", "\n"]
