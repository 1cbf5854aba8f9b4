"""`triptych chat`: one question, or a conversation."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from router.cli.timings import describe_answer
from triptych.client import Client, assistant, image, system, user, video
from triptych.client.request import SamplingOptions
from triptych.errors import InvalidRequest, TriptychError
from triptych.v1 import inference_pb2

HELP = (
    "/image FILE and /video FILE go with your next question; /clear forgets the conversation; /quit or Ctrl-D ends it."
)
FORGOTTEN = "this turn and its pictures and videos are forgotten"
# How the router names a part of a message in its errors: messages[2].parts[0].image.data
_PART = re.compile(r"messages\[(\d+)\]\.parts\[(\d+)\](?:\.\w+|\[\d+\])*")


@dataclass(frozen=True)
class _Medium:
    """A picture or video and the file it came from."""

    path: Path
    part: inference_pb2.ContentPart


def run_chat(
    client: Client,
    question: str | None,
    images: Sequence[Path],
    videos: Sequence[Path],
    system_text: str | None,
    sampling: SamplingOptions,
    *,
    show_timings: bool,
) -> int:
    """Asks `question`, or whatever a person types; returns the exit status."""
    media = [*(_read(image, path) for path in images), *(_read(video, path) for path in videos)]
    chat = Chat(client, system_text or "", sampling, media, show_timings=show_timings)
    if question is None:
        chat.talk()
    else:
        chat.ask(question)
    return 0


def sampling_options(**flags: Any) -> SamplingOptions:
    """The flags that were given."""
    return cast(SamplingOptions, {name: value for name, value in flags.items() if value is not None})


class Chat:
    """Answers go to standard output, everything else to standard error. Every question sees the turns before it."""

    def __init__(
        self,
        client: Client,
        system_text: str,
        sampling: SamplingOptions,
        media: Sequence[_Medium] = (),
        *,
        show_timings: bool = False,
    ) -> None:
        self._client = client
        self._sampling = sampling
        self._show_timings = show_timings
        self._first = [system(system_text)] if system_text else []
        self._messages = list(self._first)
        self._media = list(media)  # For the next question.
        self._notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def ask(self, question: str) -> None:
        """Streams one answer. A turn that fails (TriptychError) or is cut (KeyboardInterrupt) leaves no trace: its text
        and media are forgotten. Errors name the file that they are about."""
        media, self._media = self._media, []
        messages = [*self._messages, user(*(medium.part for medium in media), question)]
        stream = self._client.stream(messages, **self._sampling)
        is_begun = False
        try:
            for piece in stream:
                _write(piece)
                is_begun = True
            answer = stream.answer()
        except TriptychError as error:
            raise _naming_the_file(error, len(messages) - 1, media) from None
        finally:
            stream.cancel()
            if is_begun:
                _write("\n")
        self._messages = [*messages, assistant(answer.text)]
        if self._show_timings:
            for line in describe_answer(answer):
                self._notes.print(line, style="dim")

    def talk(self) -> None:
        """Turn after turn until the input ends."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            self._notes.print(HELP, style="dim")
            _load_line_editing()
        while True:
            try:
                line = input("> " if is_terminal else "").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line in ("/quit", "/exit"):
                return
            try:
                self._take(line)
            except TriptychError as error:
                self._notes.print(f"error: {error}", style="red")
            except KeyboardInterrupt:
                self._notes.print(f"(cut; {FORGOTTEN})", style="dim")

    def _take(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        match command:
            case "":
                return
            case "/image":
                self._media.append(_read(image, _path(command, argument)))
            case "/video":
                self._media.append(_read(video, _path(command, argument)))
            case "/clear":
                self._media.clear()
                self._messages = list(self._first)
            case "/help":
                self._notes.print(HELP, style="dim")
            case _:
                self._ask_in_conversation(line)

    def _ask_in_conversation(self, question: str) -> None:
        try:
            self.ask(question)
        except TriptychError as error:
            self._notes.print(f"error: {error} ({FORGOTTEN})", style="red")


def _path(command: str, argument: str) -> Path:
    """The file after a command; quotes around it are taken off."""
    text = argument.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if not text:
        raise InvalidRequest(f"{command} lacks a file, expected: {command} FILE")
    return Path(text).expanduser()


def _naming_the_file(error: TriptychError, turn: int, media: Sequence[_Medium]) -> TriptychError:
    """`error`, with the file in place of the part of message `turn` that it is about."""

    def name(found: re.Match[str]) -> str:
        message, part = int(found[1]), int(found[2])
        return str(media[part].path) if message == turn and part < len(media) else found[0]

    # The class stays: who catches it tells a lost connection from a refusal.
    error.message = _PART.sub(name, error.message)
    file = _PART.sub(name, error.field)
    if file != error.field and file not in error.message:
        error.message = f"{file}: {error.message}"
    error.args = (error.message,)
    return error


def _load_line_editing() -> None:
    """Arrow keys and earlier lines at the prompt, where Python has readline: importing it is all that input() needs."""
    try:
        importlib.import_module("readline")
    except ImportError:
        return


def _read(make_part: Callable[[Path], inference_pb2.ContentPart], path: Path) -> _Medium:
    try:
        return _Medium(path, make_part(path))
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}") from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
