"""Tracing: the spans of this process, sent over OTLP. Made only where telemetry.otlp_endpoint is set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from triptych.config.telemetry import TelemetrySection
from triptych.errors import ConfigurationError
from triptych.telemetry.request_scope import Attribute, Metadata, request_scope

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# W3C trace context: https://www.w3.org/TR/trace-context/
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
_MAX_HEADER_LENGTH = 512
_FLUSH_TIMEOUT_MS = 2_000


def trace_headers(pairs: Iterable[tuple[str, Any]] | None) -> dict[str, str]:
    """Those of a call's metadata or HTTP headers that say which trace it belongs to."""
    return {
        key: value
        for key, value in pairs or ()
        if key in (TRACEPARENT, TRACESTATE) and isinstance(value, str) and len(value) <= _MAX_HEADER_LENGTH
    }


class Tracing:
    """Spans of one process, of the service `triptych-{stage}`. `close` sends what is still here.

    Sending runs on a thread of its own and never holds up a request; a collector that does not answer costs spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("triptych")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def open(cls, section: TelemetrySection, stage: str, actor_id: str = "") -> Tracing | None:
        """None where no endpoint is set. Raises ConfigurationError where OpenTelemetry is not installed."""
        if not section.otlp_endpoint:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        except ImportError as error:
            raise ConfigurationError(
                f"telemetry.otlp_endpoint is set, but OpenTelemetry is not installed ({error}): "
                "pip install 'triptych[telemetry]', or leave it empty",
                field="telemetry.otlp_endpoint",
            ) from None
        resource = {"service.name": f"triptych-{stage}"}
        if actor_id:
            resource["service.instance.id"] = actor_id
        provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(section.trace_sample_ratio),
            resource=Resource.create(resource),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=section.otlp_endpoint)))
        return cls(provider)

    @contextmanager
    def span(
        self, name: str, request_id: str, headers: Mapping[str, str], begun_s: float | None = None
    ) -> Iterator[None]:
        """The body is a span, under the one that `headers` name, and `request_scope` of the request.

        Without such headers it begins a trace. begun_s: on the clock of time.monotonic, where that was earlier. An
        error that ends the body is told in the span.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        parent = self._propagator.extract(dict(headers))
        begun_ns = _wall_ns(time.monotonic() if begun_s is None else begun_s)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, start_time=begun_ns)
        recorder = _Recorder(self, span) if span.is_recording() else None
        span.set_attribute("triptych.request_id", request_id)
        try:
            with request_scope(request_id, recorder):
                yield
        except BaseException as error:
            kind = "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            raise
        finally:
            span.end(_wall_ns(time.monotonic()))

    async def close(self) -> None:
        """Waits for the last spans to be sent, a few seconds at most."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._provider.force_flush(_FLUSH_TIMEOUT_MS)
        self._provider.shutdown()


class _Recorder:
    """Spans under one span of a request that is traced."""

    def __init__(self, tracing: Tracing, span: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracing = tracing
        self._span = span
        self._context = set_span_in_context(span)
        carrier: dict[str, str] = {}
        tracing._propagator.inject(carrier, self._context)
        self._metadata = tuple(carrier.items())

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def note(self, name: str, begun_s: float, ended_s: float, attributes: Mapping[str, Attribute]) -> None:
        begun_ns, ended_ns = _wall_ns(begun_s), _wall_ns(ended_s)
        span = self._tracing._tracer.start_span(name, self._context, attributes=_named(attributes), start_time=begun_ns)
        span.end(ended_ns)

    def describe(self, attributes: Mapping[str, Attribute]) -> None:
        self._span.set_attributes(_named(attributes))


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """With the prefix of the project, where a name has none."""
    return {name if "." in name else f"triptych.{name}": value for name, value in attributes.items()}


def _wall_ns(monotonic_s: float) -> int:
    """Unix time of a moment on the clock of time.monotonic."""
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)
