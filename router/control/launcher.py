"""What the controller needs of whatever runs actors: `ray_launcher.py` does it with Ray, tests with plain objects."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from router.control.membership import StageName
from triptych.v1 import admin_pb2


class Health(Enum):
    """What one look at an actor's process says."""

    SERVING = auto()
    # It may live, but doesn't answer as it should: a reason to replace it when that lasts.
    SILENT = auto()
    # The process is gone for certain.
    GONE = auto()


class ActorProcess(Protocol):
    """One actor from its launch to its end. Never started twice: a replacement is another process.

    Of an actor that an earlier controller made `start` answers at once when it serves already.
    """

    async def place(self) -> None:
        """Waits until the actor has a place and its process runs; raises TriptychError when it never will."""
        ...

    async def start(self) -> admin_pb2.ActorInfo:
        """Waits until the actor serves; raises TriptychError saying why it does not. After `place`."""
        ...

    async def check(self, timeout_s: float) -> Health:
        """Asks the running actor; never raises."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Lets the actor finish its work; False when work was left. Raises Unavailable when it died meanwhile."""
        ...

    async def move(self, stage: StageName, drain_s: float) -> admin_pb2.ActorInfo:
        """Has the actor take work of another stage, and answers when it does; what it has may go on for `drain_s`.

        Raises FailedPrecondition or InvalidRequest when it can't (it stays as it is), Unavailable when it died.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """Ends the process: politely for `grace_s`, then by force (0: by force at once). Never raises; idempotent."""
        ...


class Launcher(Protocol):
    """Makes actor processes."""

    def launch(self, stage: StageName) -> ActorProcess:
        """Creates an actor of `stage`, and returns before it is started."""
        ...

    def running(self) -> list[tuple[StageName, ActorProcess]]:
        """Actors that an earlier controller left, whatever they do; each with the stage that it was launched for."""
        ...

    def lacking(self, stage: StageName) -> str:
        """What one more actor of `stage` needs and is not free now, in words; empty when nothing."""
        ...
