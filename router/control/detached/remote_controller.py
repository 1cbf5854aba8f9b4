"""RemoteController: in a router, what stands for the controller that is an actor of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from router.control.membership import Member, Membership, StageName
from router.control.scaling.context import ActorCounts
from triptych.errors import TriptychError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.rpc.status import rpc_errors
from triptych.v1 import admin_pb2, admin_pb2_grpc, router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)

_RETRY_S = 0.2
_CALL_TIMEOUT_S = 5.0
_WHO = "the controller"

Progress = Callable[[Sequence[admin_pb2.StageStatus]], None]


class Handle(Protocol):
    """What finds the controller; `controller_handle.py` does it with Ray."""

    async def make(self) -> bool: ...

    async def endpoint(self) -> str: ...

    async def end(self) -> bool: ...


class RemoteController:
    """Follows the controller: writes `membership`, and answers from the latest view what the controller would.

    While the controller is away everything stays as it was last: requests go on. Lives on one event loop.
    """

    def __init__(self, handle: Handle, membership: Membership, channels: ChannelPool) -> None:
        self._handle = handle
        self._membership = membership
        self._channels = channels
        self._endpoint = ""
        self._views = {stage: _empty_view(stage) for stage in StageName}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._has_seen = False
        self._is_responsible = False  # It made the controller, and was not told yet that all is well.

    async def start(self, progress: Progress | None = None) -> None:
        """Finds the controller or makes it, and returns when every stage has its actors. Raises what keeps one."""
        self._is_responsible = await self._handle.make()
        self._membership.on_lost(self._report_lost)
        self._following = asyncio.get_running_loop().create_task(self._follow_forever())
        while not self._is_reached():
            await self._changed.wait()
            for view in self._views.values():
                if view.is_hopeless and not view.status.actors:
                    raise Unavailable(view.start_failure)
            if progress is not None:
                progress(self.topology())
        self._is_responsible = False

    async def stop(self, grace_s: float = 5.0) -> None:
        """Follows no more. The controller and its actors stay, unless this one made them and they never were ready."""
        tasks = [task for task in (self._following, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._membership.set(())
        if self._is_responsible:
            await self._handle.end()

    async def scale(self, stage: StageName, num_actors: int, *, wait: bool, timeout_s: float) -> admin_pb2.StageStatus:
        """As Controller.scale; raises Unavailable while the controller is away."""
        request = admin_pb2.ScaleRequest(stage=stage.to_proto(), num_actors=num_actors, wait=wait)
        stub = admin_pb2_grpc.AdminServiceStub(self._channel())
        with rpc_errors(_WHO):
            response = await stub.Scale(request, timeout=timeout_s)
        # What the caller does next may rest on it: the view must not be older than the answer.
        if wait:
            async with asyncio.timeout(timeout_s):
                while len(self._membership.members(stage)) != num_actors:
                    await self._changed.wait()
        status: admin_pb2.StageStatus = response.status
        return status

    async def move(
        self, from_stage: StageName, to_stage: StageName, actor_id: str = "", *, is_automatic: bool = False
    ) -> str:
        """As Controller.move; raises Unavailable while the controller is away."""
        request = admin_pb2.MoveActorRequest(
            from_stage=from_stage.to_proto(), to_stage=to_stage.to_proto(), actor_id=actor_id, is_automatic=is_automatic
        )
        stub = admin_pb2_grpc.AdminServiceStub(self._channel())
        with rpc_errors(_WHO):
            response = await stub.MoveActor(request)
        return str(response.actor_id)

    def unpin(self, stage: StageName) -> None:
        """As Controller.unpin, soon."""
        self._views[stage].is_pinned = False
        request = admin_pb2.ScaleRequest(stage=stage.to_proto(), automatic=True)
        self._spawn(self._send(lambda: admin_pb2_grpc.AdminServiceStub(self._channel()).Scale, request))

    def set_wanted(self, stage: StageName, num_actors: int) -> None:
        """As Controller.set_wanted, soon; when the controller does not hear of it the next view says so."""
        self._views[stage].status.wanted_actors = num_actors
        request = router_pb2.SetWantedRequest(stage=stage.to_proto(), num_actors=num_actors)
        self._spawn(self._send(lambda: router_pb2_grpc.ControllerServiceStub(self._channel()).SetWanted, request))

    def is_pinned(self, stage: StageName) -> bool:
        return bool(self._views[stage].is_pinned)

    def counts(self, stage: StageName) -> ActorCounts:
        """The actors of a stage, by what they are doing."""
        status = self._views[stage].status
        states = (admin_pb2.ACTOR_STATE_READY, admin_pb2.ACTOR_STATE_STARTING, admin_pb2.ACTOR_STATE_DRAINING)
        numbers = [sum(actor.state == state for actor in status.actors) for state in states]
        return ActorCounts(status.wanted_actors, *numbers)

    def start_s(self, stage: StageName) -> float | None:
        return float(self._views[stage].start_s) or None

    def topology(self) -> list[admin_pb2.StageStatus]:
        """Every stage as the controller told it last."""
        return [self._views[stage].status for stage in StageName]

    async def _follow_forever(self) -> None:
        while True:
            try:
                await self._follow(await self._handle.endpoint())
            except TriptychError as error:
                logger.warning("%s: everything stays as it is until it is back", error)
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, endpoint: str) -> None:
        self._endpoint = endpoint
        try:
            stub = router_pb2_grpc.MembershipServiceStub(self._channels.get(endpoint))
            is_first = True
            with rpc_errors(_WHO):
                async for view in stub.Watch(router_pb2.WatchRequest()):
                    self._take(view, is_first)
                    is_first = False
        finally:
            self._endpoint = ""
            await self._channels.drop(endpoint)

    def _take(self, view: router_pb2.WatchResponse, is_first: bool) -> None:
        members = [Member.from_info(info) for info in view.actors]
        self._membership.set(members)
        if is_first:
            # This controller never heard of what was reported to the one before it.
            for member in members:
                self._membership.restore(member.actor_id)
        for stage in view.stages:
            self._views[StageName.from_proto(stage.status.stage)] = stage
        self._has_seen = True
        self._changed.set()
        self._changed = asyncio.Event()

    def _is_reached(self) -> bool:
        return self._has_seen and all(
            len(self._membership.members(stage)) == len(view.status.actors) == view.status.wanted_actors
            for stage, view in self._views.items()
        )

    def _report_lost(self, actor_id: str) -> None:
        request = router_pb2.ReportLostRequest(actor_id=actor_id)
        self._spawn(self._send(lambda: router_pb2_grpc.MembershipServiceStub(self._channel()).ReportLost, request))

    async def _send(self, method: Callable[[], Any], request: Any) -> None:
        try:
            with rpc_errors(_WHO):
                await method()(request, timeout=_CALL_TIMEOUT_S)
        except TriptychError as error:
            logger.warning("%s was not heard: %s", type(request).__name__, error.message)

    def _channel(self) -> Any:
        if not self._endpoint:
            raise Unavailable("the controller is away: Ray starts it again")
        return self._channels.get(self._endpoint)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _empty_view(stage: StageName) -> router_pb2.StageView:
    return router_pb2.StageView(status=admin_pb2.StageStatus(stage=stage.to_proto()))
