"""What a controller that is an actor of its own tells routers, and hears from their scaling policy."""

from __future__ import annotations

from typing import Any

import grpc

from router.control.controller import Controller
from router.control.membership import StageName
from triptych.errors import InvalidRequest
from triptych.v1 import router_pb2, router_pb2_grpc


class ControllerService(router_pb2_grpc.ControllerServiceServicer):  # type: ignore[misc]
    """Lives on the controller's event loop."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def SetWanted(
        self, request: router_pb2.SetWantedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> router_pb2.SetWantedResponse:
        """Raises InvalidRequest for an unknown stage."""
        try:
            stage = StageName.from_proto(request.stage)
        except ValueError as error:
            raise InvalidRequest(str(error), field="stage") from None
        # The router may not have heard yet of what an operator said.
        if not self._controller.is_pinned(stage):
            self._controller.set_wanted(stage, request.num_actors)
        return router_pb2.SetWantedResponse()


def stage_views(controller: Controller) -> list[router_pb2.StageView]:
    """Every stage as routers see it."""
    return [_view(controller, StageName.from_proto(status.stage), status) for status in controller.topology()]


def _view(controller: Controller, stage: StageName, status: Any) -> router_pb2.StageView:
    failure = controller.start_failure(stage)
    return router_pb2.StageView(
        status=status,
        is_pinned=controller.is_pinned(stage),
        start_s=controller.start_s(stage) or 0.0,
        start_failure=str(failure) if failure is not None else "",
        is_hopeless=controller.is_hopeless(stage),
    )
