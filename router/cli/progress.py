"""What a person sees while actors start."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.status import Status

from router.control.membership import StageName
from triptych.v1 import admin_pb2


class StartProgress:
    """A line that says k/n ready for each stage: it changes in place on a terminal, elsewhere each change is a line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = console.status("starting") if console.is_terminal else None
        self._last = ""

    def say(self, text: str) -> None:
        """What is being done now."""
        if text == self._last:
            return
        self._last = text
        if self._status is not None:
            self._status.update(text)
        else:
            self._console.print(text)

    def __call__(self, stages: Sequence[admin_pb2.StageStatus]) -> None:
        """The controller's progress callback."""
        self.say("actors ready: " + "  ".join(_ready_of(stage) for stage in stages if stage.wanted_actors))

    def __enter__(self) -> StartProgress:
        if self._status is not None:
            self._status.start()
        return self

    def stop(self) -> None:
        """Takes the changing line off the terminal."""
        if self._status is not None:
            self._status.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _ready_of(stage: admin_pb2.StageStatus) -> str:
    ready = sum(actor.state == admin_pb2.ACTOR_STATE_READY for actor in stage.actors)
    return f"{StageName.from_proto(stage.stage)} {ready}/{stage.wanted_actors}"
