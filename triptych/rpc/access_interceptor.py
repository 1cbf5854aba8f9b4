"""AccessInterceptor: a call without a known token ends before its request is read."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from triptych.errors import PermissionDenied, TriptychError
from triptych.rpc.access import Access, Caller

AUTHORIZATION = "authorization"
# Asked by load balancers and probes, which have no token; says nothing but SERVING or not.
OPEN_SERVICES = ("/grpc.health.v1.Health/",)
ADMIN_SERVICES = ("/triptych.v1.AdminService/",)

Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Any]


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Asks every call but health checks for a token, AdminService's for an admin's; holds each to its token's limits.

    Stands behind ErrorInterceptor, which turns what is raised here into a status.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or self._access.is_open or method.startswith(OPEN_SERVICES):
            return handler
        try:
            caller = self._access.caller(_authorization(handler_call_details))
            _check_rights(caller, method)
        except TriptychError as error:
            return _refusing(error)
        return _counted(handler, caller)


def authorization_of(metadata: Any) -> str | None:
    """The header of a call's metadata; None when it is missing or no text."""
    for key, value in metadata or ():
        if key == AUTHORIZATION:
            return value if isinstance(value, str) else None
    return None


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    return authorization_of(details.invocation_metadata)


def _check_rights(caller: Caller, method: str) -> None:
    if method.startswith(ADMIN_SERVICES) and not caller.is_admin:
        raise PermissionDenied(
            f"token {caller.name!r} may not call {method}; it takes one with the word admin on its line in "
            "security.tokens_file",
            field=AUTHORIZATION,
        )


def _refusing(error: TriptychError) -> Any:
    """A handler that reads no request, whatever the method's own kind is."""

    async def refuse(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        raise error

    return grpc.stream_stream_rpc_method_handler(refuse)


def _counted(handler: Any, caller: Caller) -> Any:
    make = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    wrap, behaviour = make[(handler.request_streaming, handler.response_streaming)]
    counted = _streaming(behaviour, caller) if handler.response_streaming else _unary(behaviour, caller)
    return wrap(counted, handler.request_deserializer, handler.response_serializer)


def _unary(behaviour: Handler, caller: Caller) -> Handler:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with caller.admit():
            return await behaviour(request, context)

    return call


def _streaming(behaviour: Handler, caller: Caller) -> Handler:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        with caller.admit():
            responses = behaviour(request, context)
            if inspect.isawaitable(responses):
                await responses
                return
            async with aclosing(responses):
                async for response in responses:
                    await context.write(response)

    return call
