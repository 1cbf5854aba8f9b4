"""`triptych chat`: one question, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
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
        media: Sequence[inference_pb2.ContentPart] = (),
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
        """Streams one answer. A turn that fails (TriptychError) or is cut (KeyboardInterrupt) leaves no trace."""
        messages = [*self._messages, user(*self._media, question)]
        stream = self._client.stream(messages, **self._sampling)
        try:
            for piece in stream:
                _write(piece)
        finally:
            stream.cancel()
            _write("\n")
        answer = stream.answer()
        self._messages = [*messages, assistant(answer.text)]
        self._media.clear()
        if self._show_timings:
            for line in describe_answer(answer):
                self._notes.print(line, style="dim")

    def talk(self) -> None:
        """Turn after turn until the input ends."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            self._notes.print(HELP, style="dim")
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
                self._notes.print("(cut; this turn is forgotten)", style="dim")

    def _take(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        path = Path(argument.strip()).expanduser()
        match command:
            case "":
                return
            case "/image":
                self._media.append(_read(image, path))
            case "/video":
                self._media.append(_read(video, path))
            case "/clear":
                self._media.clear()
                self._messages = list(self._first)
            case "/help":
                self._notes.print(HELP, style="dim")
            case _:
                self.ask(line)


def _read(make_part: Callable[[Path], inference_pb2.ContentPart], path: Path) -> inference_pb2.ContentPart:
    try:
        return make_part(path)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}") from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
