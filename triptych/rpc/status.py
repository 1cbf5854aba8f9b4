"""Errors on the wire: a TriptychError leaves a server as a google.rpc.Status and comes back as the same class.

The status code comes from the table in `triptych/errors.py`; ErrorInfo carries the class name and the field, RetryInfo
(and the trailing metadata `grpc-retry-pushback-ms`, which gRPC's own retry policy obeys) the advice of Overloaded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from triptych.errors import (
    STATUS_CODES,
    DeadlineExceeded,
    Overloaded,
    RequestTooLarge,
    TriptychError,
    Unavailable,
    error_class,
    grpc_status,
)

ERROR_DOMAIN = "triptych"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
RETRY_PUSHBACK_KEY = "grpc-retry-pushback-ms"
MESSAGE_LIMIT_FIELD = "limits.max_message_bytes"

# A status travels in HTTP/2 trailers, which gRPC bounds at 8 KiB: the message stands there twice, percent-encoded
# (up to three bytes a byte) and inside the details.
MAX_STATUS_TEXT_BYTES = 1_400
MAX_FIELD_BYTES = 200

_CLASSES: dict[str, type[TriptychError]] = {cls.__name__: cls for cls in STATUS_CODES}
_OVERSIZE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
# Codes that gRPC itself gives to a call when the peer or the connection went away under it.
_LINK_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def to_status(error: TriptychError) -> status_pb2.Status:
    """The google.rpc.Status of `error`; texts too long for HTTP/2 trailers are cut and end in '...'."""
    field = _cut(error.field, MAX_FIELD_BYTES)
    status = status_pb2.Status(
        code=grpc_status(error).value[0],
        message=_cut(error.message, MAX_STATUS_TEXT_BYTES),
    )
    info = error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=ERROR_DOMAIN, metadata={"field": field})
    status.details.add().Pack(info)
    if isinstance(error, Overloaded):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(_retry_ms(error))
        status.details.add().Pack(retry)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: TriptychError) -> NoReturn:
    """End the call of `context` with the status of `error`: raises grpc.aio.AbortError, which must pass."""
    status = to_status(error)
    trailing: tuple[tuple[str, str | bytes], ...] = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    if isinstance(error, Overloaded):
        trailing = (*trailing, (RETRY_PUSHBACK_KEY, str(_retry_ms(error))))
    await context.abort(grpc_status(error), status.message, trailing)
    raise AssertionError("abort returned")


def from_rpc_error(error: grpc.aio.AioRpcError, endpoint: str = "") -> TriptychError:
    """The TriptychError that `error` stands for.

    With ErrorInfo: same class, message and field as on the server. Without, the status comes from gRPC itself:
    a broken link, a peer that stops or a connection that can't be made is Unavailable, a message over the size limit
    RequestTooLarge, anything else the first class that has the status code.
    """
    details = _rich_status(error)
    if details is not None:
        return _from_details(details, error.code())
    code, text = error.code(), error.details() or ""
    peer = f"{endpoint}: " if endpoint else ""
    if code in _LINK_CODES or (code is grpc.StatusCode.INTERNAL and "RST_STREAM" in text):
        return Unavailable(f"{peer}connection lost or refused: {text}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{peer}the call's deadline passed")
    oversize = _OVERSIZE.search(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and oversize:
        num_bytes, limit = oversize.groups()
        return RequestTooLarge(
            f"{peer}a message of {num_bytes} bytes is over the limit of {limit} bytes ({MESSAGE_LIMIT_FIELD})",
            field=MESSAGE_LIMIT_FIELD,
        )
    return error_class(code)(f"{peer}{code.name}: {text}")


@contextmanager
def rpc_errors(endpoint: str = "") -> Iterator[None]:
    """Around calls to `endpoint`: an AioRpcError leaves as the TriptychError it stands for.

    A call that ends in CancelledError although nobody cancelled this task (its channel was closed) leaves as
    Unavailable.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, endpoint) from None
    except grpc.aio.UsageError as error:
        raise Unavailable(f"{endpoint}: {error}") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling() > 0:
            raise
        raise Unavailable(f"{endpoint}: the channel was closed under the call") from None


def _rich_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            return status_pb2.Status.FromString(value)
        except DecodeError:
            return None
    return None


def _from_details(status: status_pb2.Status, code: grpc.StatusCode) -> TriptychError:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1_000)
    for detail in status.details:
        for message in (info, retry):
            if not detail.Is(message.DESCRIPTOR):
                continue
            try:
                detail.Unpack(message)
            except DecodeError:
                continue
    cls = _CLASSES.get(info.reason) if info.domain == ERROR_DOMAIN else None
    cls = cls or error_class(code)
    field = info.metadata.get("field", "")
    if issubclass(cls, Overloaded):
        return cls(status.message, field=field, retry_after_s=retry.retry_delay.ToMilliseconds() / 1_000)
    return cls(status.message, field=field)


def _retry_ms(error: Overloaded) -> int:
    return max(0, round(error.retry_after_s * 1_000))


def _cut(text: str, max_bytes: int) -> str:
    data = text.encode("utf-8", errors="replace")
    if len(data) <= max_bytes:
        return data.decode("utf-8")
    return data[: max_bytes - 3].decode("utf-8", errors="ignore") + "..."
