"""MembershipFollower: keeps a process's membership as the first process has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc

from router.control.membership import Member, Membership
from triptych.errors import TriptychError
from triptych.rpc.status import rpc_errors
from triptych.v1 import router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)

_REPORT_TIMEOUT_S = 5.0

OnServing = Callable[[bool], Awaitable[None]]


class MembershipFollower:
    """Writes `membership`, and passes on what its dispatcher reports lost."""

    def __init__(self, membership: Membership, first: grpc.aio.Channel, on_serving: OnServing) -> None:
        """`on_serving` is told with every view whether the router as a whole serves."""
        self._membership = membership
        self._stub = router_pb2_grpc.MembershipServiceStub(first)
        self._on_serving = on_serving
        self._reports: set[asyncio.Task[None]] = set()
        membership.on_lost(self._report_soon)

    async def run(self) -> None:
        """Until it is cancelled; raises a TriptychError when the first process ends the stream."""
        with rpc_errors("the first router process"):
            async for view in self._stub.Watch(router_pb2.WatchRequest()):
                self._membership.set([Member.from_info(info) for info in view.actors])
                await self._on_serving(view.is_serving)

    def _report_soon(self, actor_id: str) -> None:
        task = asyncio.create_task(self._report(actor_id), name=f"report {actor_id} lost")
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report(self, actor_id: str) -> None:
        try:
            with rpc_errors("the first router process"):
                await self._stub.ReportLost(router_pb2.ReportLostRequest(actor_id=actor_id), timeout=_REPORT_TIMEOUT_S)
        except TriptychError as error:
            logger.warning("that actor %s is lost was not reported: %s", actor_id, error.message)
