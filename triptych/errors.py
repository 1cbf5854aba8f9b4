"""Every error that can reach a caller, and the one table that maps them to gRPC and HTTP.

A message says what was wrong, what was expected, and the field or setting that changes it.
Inside a process errors travel as these classes; between processes as a gRPC status whose code comes from STATUS_CODES
and whose details carry the field (`triptych/rpc/status.py`).
"""

from __future__ import annotations

import grpc


class TriptychError(Exception):
    """Base of all. `field` names the request field or configuration key at fault, where there is one."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidRequest(TriptychError):
    """The request can never succeed as it is: wrong value, unreadable media, too many parts."""


class RequestTooLarge(InvalidRequest):
    """A size is over its limit: pixels, bytes, frames, tokens."""


class ConfigurationError(TriptychError):
    """The deployment's configuration or an actor's environment is wrong."""


class ModelError(TriptychError):
    """A checkpoint folder is incomplete, of another architecture, or differs between two actors."""


class NotFound(TriptychError):
    """Unknown ticket, actor or model."""


class Unauthenticated(TriptychError):
    """No credentials, or wrong ones."""


class PermissionDenied(TriptychError):
    """Known credentials that do not allow this call."""


class FailedPrecondition(TriptychError):
    """The callee's state rules the call out: pixels for an actor without a vision tower, a tensor of other weights."""


class Overloaded(TriptychError):
    """A bounded queue is full. `retry_after_s` is advice for the caller."""

    def __init__(self, message: str, *, field: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class Unavailable(TriptychError):
    """An actor or link broke or is going away. The same work may be tried elsewhere."""


class IntegrityError(TriptychError):
    """A tensor that arrived is not what its ticket said: dtype, shape, length or checksum."""


class DeadlineExceeded(TriptychError):
    """The request's time ran out."""


class Cancelled(TriptychError):
    """The caller went away, or an operator aborted the request."""


class InternalError(TriptychError):
    """A bug. The only class whose gRPC status is INTERNAL."""


# The table: class -> (gRPC status, HTTP status). A subclass without a row of its own takes its parent's.
STATUS_CODES: dict[type[TriptychError], tuple[grpc.StatusCode, int]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    RequestTooLarge: (grpc.StatusCode.INVALID_ARGUMENT, 413),
    ConfigurationError: (grpc.StatusCode.FAILED_PRECONDITION, 500),
    ModelError: (grpc.StatusCode.FAILED_PRECONDITION, 500),
    NotFound: (grpc.StatusCode.NOT_FOUND, 404),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, 401),
    PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, 403),
    FailedPrecondition: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    Unavailable: (grpc.StatusCode.UNAVAILABLE, 503),
    IntegrityError: (grpc.StatusCode.DATA_LOSS, 502),
    DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    Cancelled: (grpc.StatusCode.CANCELLED, 499),
    InternalError: (grpc.StatusCode.INTERNAL, 500),
    TriptychError: (grpc.StatusCode.UNKNOWN, 500),
}


def grpc_status(error: TriptychError) -> grpc.StatusCode:
    """gRPC status of `error` by the table, its nearest ancestor's row counting."""
    return _row(type(error))[0]


def http_status(error: TriptychError) -> int:
    """HTTP status of `error` by the table, its nearest ancestor's row counting."""
    return _row(type(error))[1]


def error_class(status: grpc.StatusCode) -> type[TriptychError]:
    """The class that a gRPC status turns into on the receiving side; the first row that has it wins."""
    return next((cls for cls, (code, _) in STATUS_CODES.items() if code is status), TriptychError)


def without_frames(error: TriptychError) -> TriptychError:
    """`error`, of which nothing is left to be seen but its message: neither it nor what it came from has a traceback.

    Who keeps an error keeps the frames it went through, and by them the frames that called these, with all that is in
    them; where one of them holds the error itself, until the garbage collector comes.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


def _row(cls: type[TriptychError]) -> tuple[grpc.StatusCode, int]:
    return next(STATUS_CODES[ancestor] for ancestor in cls.__mro__ if ancestor in STATUS_CODES)
