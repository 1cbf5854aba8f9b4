"""ErrorInterceptor: whatever a handler raises leaves the server as a status of the error table."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc

from triptych.errors import DeadlineExceeded, InternalError, InvalidRequest, TriptychError, Unavailable
from triptych.rpc.status import abort, from_rpc_error
from triptych.telemetry.logs import REQUEST_ID
from triptych.telemetry.request_scope import request_of_walk

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]

# Stands for a request that could not be parsed; gRPC itself would answer UNKNOWN with the exception's text.
_UNREADABLE = object()


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every async handler, answering once or streaming.

    Streaming handlers written as generators are driven through `context.write`, so that a cancelled call closes the
    generator (and runs its `finally`) at once instead of when it is collected.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            behaviour = _streaming(handler.stream_stream if handler.request_streaming else handler.unary_stream, method)
        else:
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            behaviour = _unary(handler.stream_unary if handler.request_streaming else handler.unary_unary, method)
        deserializer = handler.request_deserializer
        if deserializer is not None and not handler.request_streaming:
            deserializer = _tolerant(deserializer)
        return make(behaviour, deserializer, handler.response_serializer)


def _tolerant(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:
            return _UNREADABLE

    return parse


def _check_readable(request: Any, method: str) -> None:
    if request is _UNREADABLE:
        raise InvalidRequest(f"the request of {method} can't be parsed, expected its message in protobuf's wire format")


def _unary(behaviour: Handler, method: str) -> Handler:
    async def call(request: Any, context: Context) -> Any:
        try:
            _check_readable(request, method)
            return await behaviour(request, context)
        except (Exception, asyncio.CancelledError) as error:
            await _end(context, method, error, request)

    return call


def _streaming(behaviour: Handler, method: str) -> Handler:
    async def call(request: Any, context: Context) -> None:
        try:
            _check_readable(request, method)
            responses = behaviour(request, context)
            if inspect.isawaitable(responses):
                await responses
            else:
                await _write_all(responses, context)
        except (Exception, asyncio.CancelledError) as error:
            await _end(context, method, error, request)

    return call


async def _write_all(responses: AsyncGenerator[Any, None], context: Context) -> None:
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)


async def _end(context: Context, method: str, error: BaseException, request: Any) -> NoReturn:
    """End the call with the status of `error`, or raise it again where gRPC has to see it."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0:
        raise error  # The caller went away or its deadline passed: gRPC has ended the call.
    if isinstance(error, grpc.aio.InternalError):
        # A response could not be sent: the caller is gone and the cancellation is about to come.
        logger.debug("%s: %s", method, error)
        raise asyncio.CancelledError from None
    await abort(context, _translate(method, error, request))


def _translate(method: str, error: BaseException, request: Any) -> TriptychError:
    """The error that the caller is told. Bugs are logged here and told without their text."""
    if isinstance(error, TriptychError) and not isinstance(error, InternalError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{method}: a wait inside the call ran out of time")
    if isinstance(error, asyncio.CancelledError):
        # Not this call's task was cancelled but work it waited for: the actor is letting go of its work.
        return Unavailable(f"{method}: the actor dropped the work of this call")
    request_id = request_of_walk(str(getattr(request, REQUEST_ID, "")))
    logger.error("bug in %s", method, exc_info=error, extra={REQUEST_ID: request_id})
    if isinstance(error, InternalError):
        return error
    return InternalError(f"internal error in {method}; the traceback is in the log of the actor")
