"""MembershipService: the first process tells the others who can work, and hears from them who can't be reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from router.control.membership import Membership
from router.processes.member_info import info_of
from triptych.errors import Overloaded
from triptych.v1 import router_pb2, router_pb2_grpc

# Changes that a process may be behind. One that reads no more is ended and begins anew with the view of then.
_MAX_UNREAD_VIEWS = 1_024


class MembershipService(router_pb2_grpc.MembershipServiceServicer):  # type: ignore[misc]
    """Lives on the event loop of its membership.

    Every change is sent by itself: only so a process sees that an actor which it had reported lost went and came back.
    """

    def __init__(self, membership: Membership, stages: Callable[[], list[router_pb2.StageView]] = list) -> None:
        """`stages` says what the views tell of them; call `publish` when that changed."""
        self._membership = membership
        self._stages = stages
        self._published: router_pb2.WatchResponse | None = None
        self._is_serving = False
        self._watchers: set[asyncio.Queue[router_pb2.WatchResponse]] = set()
        membership.on_change(self.publish)

    def set_serving(self, is_serving: bool) -> None:
        """What clients of the other processes are told from now on."""
        self._is_serving = is_serving
        self.publish()

    async def Watch(
        self, request: router_pb2.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[router_pb2.WatchResponse]:
        """The view now and after every change."""
        unread: asyncio.Queue[router_pb2.WatchResponse] = asyncio.Queue()
        unread.put_nowait(self._view())
        self._watchers.add(unread)
        try:
            while unread.qsize() <= _MAX_UNREAD_VIEWS:
                yield await unread.get()
            raise Overloaded(f"{unread.qsize()} changes of the membership were not read")
        finally:
            self._watchers.discard(unread)

    async def ReportLost(
        self, request: router_pb2.ReportLostRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> router_pb2.ReportLostResponse:
        """The controller is told, and the actor leaves the view of every process until it answered the controller."""
        self._membership.report_lost(request.actor_id)
        return router_pb2.ReportLostResponse()

    def publish(self) -> None:
        """Sends the view to all who watch, if it is another one than before."""
        view = self._view()
        if view == self._published:
            return
        self._published = view
        for unread in self._watchers:
            if unread.qsize() <= _MAX_UNREAD_VIEWS:
                unread.put_nowait(view)

    def _view(self) -> router_pb2.WatchResponse:
        actors = [info_of(member) for member in self._membership.all_members()]
        return router_pb2.WatchResponse(actors=actors, is_serving=self._is_serving, stages=self._stages())
