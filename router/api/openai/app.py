"""The HTTP API as an ASGI application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from router.api.answering import AnsweringService
from router.api.fetch.media_fetcher import MediaFetcher
from router.api.metrics import CONTENT_TYPE
from router.api.openai.chat_completions import ChatCompletions
from router.api.openai.door import Door
from router.api.openai.openapi import openapi_document
from triptych import __version__
from triptych.config import DeploymentConfig
from triptych.errors import NotFound, Unavailable
from triptych.rpc.access import Access

# What keeps the deployment from answering; empty when it can.
WhatIsMissing = Callable[[], str]
MetricsPage = Callable[[], Awaitable[bytes]]


def http_app(
    config: DeploymentConfig,
    model_name: str,
    answering: AnsweringService,
    access: Access,
    what_is_missing: WhatIsMissing,
    fetcher: MediaFetcher | None = None,
    scrape: Callable[[], Awaitable[None]] | None = None,
    shared_metrics: MetricsPage | None = None,
) -> ASGIApp:
    """All paths, behind their door. `fetcher` is made from the configuration when it is not given; `scrape` brings the
    metrics of the actors up to date. `shared_metrics` makes the page of all router processes where there are several.
    """
    chat = ChatCompletions(config, model_name, answering, fetcher or MediaFetcher(config.fetch))
    pages = _Pages(model_name, answering, what_is_missing, scrape, shared_metrics)
    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", pages.models),
        Route("/v1/models/{model:path}", pages.model),
        Route("/health", pages.health),
        Route("/ready", pages.ready),
        Route("/metrics", pages.metrics),
        Route("/openapi.json", pages.openapi),
    ]
    return Door(Router(routes, redirect_slashes=False), access)


class _Pages:
    """Everything but answers."""

    def __init__(
        self,
        model_name: str,
        answering: AnsweringService,
        what_is_missing: WhatIsMissing,
        scrape: Callable[[], Awaitable[None]] | None,
        shared_metrics: MetricsPage | None,
    ) -> None:
        self._model_name = model_name
        self._answering = answering
        self._what_is_missing = what_is_missing
        self._scrape = scrape
        self._shared_metrics = shared_metrics
        self._model = {"id": model_name, "object": "model", "created": int(time.time()), "owned_by": "triptych"}
        self._document = openapi_document(__version__)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self._model_name:
            raise NotFound(f"model {name[:80]!r} is not served here, {self._model_name!r} is", field="model")
        return JSONResponse(self._model)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        missing = self._what_is_missing()
        if missing:
            raise Unavailable(f"not ready: {missing}")
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        if self._shared_metrics is not None:
            return Response(await self._shared_metrics(), headers={"content-type": CONTENT_TYPE})
        if self._scrape is not None:
            await self._scrape()
        return Response(self._answering.metrics.page(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)
