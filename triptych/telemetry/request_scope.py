"""Which request the running code works for: its id in log lines, its spans where it is traced.

Tasks inherit it from the task that makes them. What outlives its first request must be made in a fresh
`contextvars.Context()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

# What a span or a log line tells beside its name.
Attribute = str | int | float | bool
# Metadata of a gRPC call: lower-case names and values.
Metadata = tuple[tuple[str, str], ...]


class SpanRecorder(Protocol):
    """Where the spans of one traced request go; `telemetry/tracing.py` has the real one."""

    @property
    def metadata(self) -> Metadata:
        """What tells another process which trace and span its own spans belong under (W3C traceparent)."""
        ...

    def note(self, name: str, begun_s: float, ended_s: float, attributes: Mapping[str, Attribute]) -> None:
        """Something that is over, under the span at hand; times on the clock of time.monotonic."""
        ...

    def describe(self, attributes: Mapping[str, Attribute]) -> None:
        """More about the span at hand."""
        ...


_OF_WALK = re.compile(r":[0-9a-f]{8}\Z")
_request_id: ContextVar[str] = ContextVar("triptych_request_id", default="")
_recorder: ContextVar[SpanRecorder | None] = ContextVar("triptych_span_recorder", default=None)


def request_id_here() -> str:
    """The id of the request that is worked for; empty outside of any."""
    return _request_id.get()


def recorder_here() -> SpanRecorder | None:
    """None where the request is not traced."""
    return _recorder.get()


def note_span(name: str, begun_s: float, ended_s: float, **attributes: Attribute) -> None:
    """As `SpanRecorder.note`; nothing where the request is not traced."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.note(name, begun_s, ended_s, attributes)


def trace_metadata() -> Metadata:
    """For the calls that are made for this request."""
    recorder = _recorder.get()
    return () if recorder is None else recorder.metadata


def request_of_walk(walk_id: str) -> str:
    """The client's request id in the name of a walk, to which the router adds eight hexadecimal digits."""
    return _OF_WALK.sub("", walk_id)


@contextmanager
def request_scope(request_id: str, recorder: SpanRecorder | None = None) -> Iterator[None]:
    """The body, and the tasks that it makes, work for this request. Enter and leave it in one task."""
    id_token, recorder_token = _request_id.set(request_id), _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(recorder_token)
        _request_id.reset(id_token)
