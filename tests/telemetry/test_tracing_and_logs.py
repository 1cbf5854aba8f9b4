"""Traces begin where a client says so and cost nothing where they are off; log lines name their request."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from harness import ONE_OF_EACH, InProcessSystem
from span_collector import span_collector

from router.dispatch.stage_calls import StageCalls
from triptych.config.telemetry import TelemetrySection
from triptych.errors import ConfigurationError
from triptych.telemetry.logs import figures, set_up_logging
from triptych.telemetry.request_scope import note_span, request_id_here, request_of_walk, request_scope, trace_metadata
from triptych.telemetry.tracing import Tracing, trace_headers
from triptych.v1 import inference_pb2, inference_pb2_grpc

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@contextmanager
def logged(log_format: str = "json") -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    set_up_logging(TelemetrySection(log_format=log_format, log_level="info"), stream=stream)
    try:
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def question(request_id: str = "mine") -> inference_pb2.GenerateRequest:
    part = inference_pb2.ContentPart(text="count")
    request = inference_pb2.GenerateRequest(
        request_id=request_id, messages=[inference_pb2.ChatMessage(role="user", parts=[part])]
    )
    request.sampling.max_tokens = 4
    return request


async def ask(endpoint: str, request: inference_pb2.GenerateRequest, headers: tuple[tuple[str, str], ...]) -> None:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        async for _ in stub.Generate(request, metadata=headers, timeout=20):
            pass


@pytest.mark.parametrize(("flags", "is_traced"), [("01", True), ("00", False)])
async def test_a_clients_traceparent_decides(random_model_folder: Path, flags: str, is_traced: bool) -> None:
    with span_collector() as collector:
        telemetry = {"otlp_endpoint": collector.endpoint, "trace_sample_ratio": 0.0}
        async with InProcessSystem(random_model_folder, ONE_OF_EACH, telemetry=telemetry) as system:
            await ask(system.endpoint, question(), (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-{flags}"),))
            await ask(system.endpoint, question("without"), ())
        assert {span.trace_id for span in collector.spans} == ({TRACE_ID} if is_traced else set())
        if is_traced:
            assert collector.one("request").parent_id == SPAN_ID
            assert {"prefill", "decode", "kv_transfer"} <= {span.name for span in collector.spans}


async def test_a_request_that_fails_says_so_in_its_span_and_its_line(random_model_folder: Path) -> None:
    with span_collector() as collector, logged() as log:
        telemetry = {"otlp_endpoint": collector.endpoint}
        async with InProcessSystem(random_model_folder, ONE_OF_EACH, telemetry=telemetry) as system:
            request = question()
            request.messages[0].role = "nobody"
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(system.endpoint, request, ())
        span = collector.one("request")
        assert span.is_error and span.attributes["error.type"] == "InvalidRequest"
        assert span.attributes["triptych.outcome"] == "invalid_request"
        (line,) = [json.loads(row) for row in log.getvalue().splitlines() if "failed" in row]
        assert line["request_id"] == "mine" and line["outcome"] == "invalid_request"


async def test_an_attempt_that_failed_is_in_the_trace_beside_the_one_that_did_not(random_model_folder: Path) -> None:
    with span_collector() as collector:
        telemetry = {"otlp_endpoint": collector.endpoint}
        async with InProcessSystem(random_model_folder, ONE_OF_EACH, telemetry=telemetry) as system:
            failing = _fail_first_prefill()
            with failing:
                await ask(system.endpoint, question(), ())
        assert collector.one("request").attributes["triptych.attempts"] == 2
        assert len({span.trace_id for span in collector.spans}) == 1
        assert sum(not span.is_error for span in collector.named("LanguageService/Decode")) == 1
        assert len(collector.named("decode")) == 1


@contextmanager
def _fail_first_prefill() -> Iterator[None]:
    from triptych.errors import Unavailable

    real, calls = StageCalls.prefill, []

    async def prefill(self: StageCalls, *arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise Unavailable("gone")
        return await real(self, *arguments)  # type: ignore[arg-type]

    StageCalls.prefill = prefill  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        StageCalls.prefill = real  # type: ignore[method-assign]


def test_without_an_endpoint_nothing_is_imported() -> None:
    code = (
        "import sys, router.server, llm_service.actor, encoder_service.actor\n"
        "from triptych.config.telemetry import TelemetrySection\n"
        "from triptych.telemetry.tracing import Tracing\n"
        "assert Tracing.open(TelemetrySection(), 'router') is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"triptych\[telemetry\]"):
        Tracing.open(TelemetrySection(otlp_endpoint="http://127.0.0.1:1"), "router")


def test_an_endpoint_is_a_url() -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        TelemetrySection(otlp_endpoint="collector:4317")


def test_only_short_trace_headers_are_taken() -> None:
    pairs = [("traceparent", "a"), ("tracestate", "x" * 600), ("authorization", "secret"), ("traceparent", b"b")]
    assert trace_headers(pairs) == {"traceparent": "a"}


async def test_tasks_work_for_the_request_that_made_them() -> None:
    async def who() -> str:
        await asyncio.sleep(0)
        return request_id_here()

    with request_scope("one"):
        first = asyncio.create_task(who())
    with request_scope("two"):
        second = asyncio.create_task(who())
        note_span("nothing", 0.0, 1.0)
        assert trace_metadata() == ()
    assert (await first, await second, request_id_here()) == ("one", "two", "")


def test_a_walk_has_the_name_of_its_request() -> None:
    assert request_of_walk("a:b:0123abcd") == "a:b"
    assert request_of_walk("a:b") == "a:b"


def test_json_lines_have_the_figures_and_the_request() -> None:
    with logged() as log, request_scope("one"):
        logging.getLogger("part").info("done\nsure", extra=figures(num_tokens=3, message="not this"))
        logging.getLogger("part").warning("elsewhere", extra={"request_id": "two"})
    first, second = map(json.loads, log.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "part",
        "message": "done\nsure",
        "request_id": "one",
        "num_tokens": 3,
    }
    assert second["request_id"] == "two"


def test_text_lines_stay_lines_whatever_clients_write() -> None:
    with logged("text") as log, request_scope("one"):
        logging.getLogger("part").info("said %s", "a\nERROR \x1b[2J", extra=figures(share=0.123456))
    (line,) = log.getvalue().splitlines()
    assert line.endswith(r"INFO part: said a\nERROR \x1b[2J share=0.1235 [request one]")
