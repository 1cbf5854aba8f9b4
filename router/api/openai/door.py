"""Door: what every HTTP request passes: a request id, a token where tokens are asked for, errors in OpenAI's shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.api.openai.problem import error_body, error_headers, in_http_terms
from router.dispatch.request_check import MAX_REQUEST_ID_LENGTH
from triptych.errors import (
    Cancelled,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    NotFound,
    TriptychError,
    http_status,
)
from triptych.rpc.access import Access
from triptych.telemetry.logs import REQUEST_ID as LOG_REQUEST_ID
from triptych.transport.ticket import new_id

logger = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"
# Asked by load balancers and probes, which have no token; they say nothing but yes or no.
OPEN_PATHS = ("/health", "/ready")
_VALID_ID = re.compile(rf"[A-Za-z0-9_.:-]{{1,{MAX_REQUEST_ID_LENGTH}}}")


class MethodNotAllowed(InvalidRequest):
    """The path has other methods."""


class Door:
    """ASGI middleware. `scope["state"]` gets `request_id` and `tenant`, the name of the caller's token."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with an error what is raised before the response began; a bug later ends the connection."""
        if scope["type"] != "http":
            return
        asked_id = _header(scope, REQUEST_ID)
        request_id = asked_id if asked_id and _VALID_ID.fullmatch(asked_id) else new_id()
        scope.setdefault("state", {}).update(request_id=request_id, tenant="")
        scope["app"] = self._app  # With it Starlette's routing raises what it would otherwise answer by itself.
        response = _Response(send, request_id)
        try:
            if asked_id and asked_id != request_id:
                raise InvalidRequest(
                    f"X-Request-Id is {asked_id[:40]!r}, expected at most {MAX_REQUEST_ID_LENGTH} letters, digits and "
                    "any of _ . : -",
                    field="X-Request-Id",
                )
            with self._admitted(scope):
                await self._app(scope, receive, response.send)
        except Cancelled as error:
            logger.debug("request %s: %s", request_id, error, extra={LOG_REQUEST_ID: request_id})
        except TriptychError as error:
            await response.fail(error, scope, receive)
        except HTTPException as error:
            await response.fail(_from_starlette(error, scope), scope, receive, error.status_code)
        except Exception:
            logger.exception("bug in %s", scope["path"], extra={LOG_REQUEST_ID: request_id})
            await response.fail(
                InternalError("internal error; the traceback is in the log of the router"), scope, receive
            )

    def _admitted(self, scope: Scope) -> AbstractContextManager[None]:
        """Holds the place of the token's caller. Raises Unauthenticated, Overloaded."""
        if self._access.is_open or scope["path"] in OPEN_PATHS:
            return nullcontext()
        caller = self._access.caller(_header(scope, b"authorization"))
        scope["state"]["tenant"] = caller.name
        return caller.admit()


class _Response:
    """Adds the request id to a response, and knows whether it has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._is_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_begun = True
            message = {**message, "headers": [*message.get("headers", ()), (REQUEST_ID, self._request_id.encode())]}
        await self._send(message)

    async def fail(self, error: TriptychError, scope: Scope, receive: Receive, status: int | None = None) -> None:
        if self._is_begun:
            raise ConnectionError(f"request {self._request_id} broke after its response had begun") from error
        told = in_http_terms(error)
        response = JSONResponse(error_body(told), http_status(told) if status is None else status)
        for name, value in error_headers(told):
            response.headers[name] = value
        await response(scope, receive, self.send)


def _header(scope: Scope, name: bytes) -> str | None:
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _from_starlette(error: HTTPException, scope: Scope) -> TriptychError:
    where = f"{scope['method']} {scope['path'][:200]}"
    if error.status_code == 404:
        return NotFound(f"{where}: no such path; /openapi.json has all of them")
    if error.status_code == 405:
        return MethodNotAllowed(f"{where}: the path has other methods")
    return FailedPrecondition(f"{where}: {error.detail}")
