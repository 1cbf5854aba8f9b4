"""Actors without processes: what they do is set by the test, and the calls that reach them are noted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from router.control.launcher import Health
from router.control.membership import StageName
from triptych.errors import TriptychError
from triptych.v1 import admin_pb2


@dataclass
class FakeActor:
    """Starts at once unless `start_error` or `start_gate` says otherwise; drains when `work_done` is set."""

    stage: StageName
    actor_id: str
    start_error: TriptychError | None = None
    start_gate: asyncio.Event | None = None
    place_gate: asyncio.Event | None = None
    state: admin_pb2.ActorState = admin_pb2.ACTOR_STATE_READY
    health: Health = Health.SERVING
    work_done: asyncio.Event = field(default_factory=asyncio.Event)
    move_gate: asyncio.Event | None = None
    move_error: TriptychError | None = None
    num_checks: int = 0
    stops: list[float] = field(default_factory=list)
    is_draining: bool = False

    async def place(self) -> None:
        if self.place_gate is not None:
            await self.place_gate.wait()

    async def start(self) -> admin_pb2.ActorInfo:
        if self.start_gate is not None:
            await self.start_gate.wait()
        if self.start_error is not None:
            raise self.start_error
        return admin_pb2.ActorInfo(
            actor_id=self.actor_id,
            stage=self.stage.to_proto(),
            endpoint=f"127.0.0.1:{5000 + int(self.actor_id[-2:])}",
            state=self.state,
        )

    async def check(self, timeout_s: float) -> Health:
        self.num_checks += 1
        return self.health

    async def drain(self, timeout_s: float) -> bool:
        self.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.work_done.wait()
        except TimeoutError:
            return False
        return True

    async def move(self, stage: StageName, drain_s: float) -> admin_pb2.ActorInfo:
        if self.move_gate is not None:
            await self.move_gate.wait()
        if self.move_error is not None:
            raise self.move_error
        self.stage = stage
        return await self.start()

    async def stop(self, grace_s: float) -> None:
        self.stops.append(grace_s)


class FakeLauncher:
    """Notes every actor it made; `next_error` and `gate` are given to the actors made from now on."""

    def __init__(self) -> None:
        self.actors: list[FakeActor] = []
        self.next_error: TriptychError | None = None
        self.gate: asyncio.Event | None = None
        self.place_gate: asyncio.Event | None = None
        self.missing = ""
        self.left: list[FakeActor] = []

    def launch(self, stage: StageName) -> FakeActor:
        actor = FakeActor(stage, f"{stage}-{len(self.actors):02d}", self.next_error, self.gate, self.place_gate)
        self.actors.append(actor)
        return actor

    def running(self) -> list[tuple[StageName, FakeActor]]:
        return [(actor.stage, actor) for actor in self.left]

    def lacking(self, stage: StageName) -> str:
        return self.missing

    def of(self, stage: StageName) -> list[FakeActor]:
        return [actor for actor in self.actors if actor.stage is stage]
