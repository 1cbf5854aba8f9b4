"""A collector for traces: takes OTLP over gRPC, as a real one does, and keeps the spans."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class KeptSpan:
    """Ids in hexadecimal; times in seconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begun_s: float
    duration_s: float
    attributes: dict[str, Any] = field(hash=False)
    is_error: bool = False


class SpanCollector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.endpoint = ""
        self.spans: list[KeptSpan] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource_spans in request.resource_spans:
            service = _attributes(resource_spans.resource.attributes)["service.name"]
            for scope_spans in resource_spans.scope_spans:
                self.spans += [_kept(service, span) for span in scope_spans.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[KeptSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> KeptSpan:
        (span,) = self.named(name)
        return span

    def children(self, parent: KeptSpan) -> list[str]:
        """Their names, in the order of their beginnings."""
        spans = [span for span in self.spans if span.parent_id == parent.span_id]
        return [span.name for span in sorted(spans, key=lambda span: span.begun_s)]


@contextmanager
def span_collector() -> Iterator[SpanCollector]:
    collector = SpanCollector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)


def _kept(service: str, span: Any) -> KeptSpan:
    return KeptSpan(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        begun_s=span.start_time_unix_nano / 1e9,
        duration_s=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        attributes=_attributes(span.attributes),
        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
