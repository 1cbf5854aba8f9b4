"""Scrape, trace and log of one request agree with each other and with the timings in its response."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import COLOCATED, ONE_OF_EACH, TWO_ENCODERS, InProcessSystem, Topology
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from span_collector import KeptSpan, SpanCollector, span_collector

from router.api.client_ports import ClientPorts
from triptych.client import Answer, AsyncClient
from triptych.config.telemetry import TelemetrySection
from triptych.rpc.channels import ChannelPool
from triptych.telemetry.logs import set_up_logging

LONG = {"max_tokens": 12, "ignore_eos": True}
# Times of one clock, told in nanoseconds and as doubles.
CLOCK_S = 0.001


class Scrape:
    """A page of metrics; `page[name, labels...]` is the sum over the other labels."""

    def __init__(self, page: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == f"triptych:{name}" and labels.items() <= sample.labels.items()
        )


class Observed:
    """One request through a system with both ports, and everything that was told about it."""

    def __init__(self, before: Scrape, after: Scrape, answer: Answer, lines: list[dict[str, Any]]) -> None:
        self.before, self.after, self.answer, self.lines = before, after, answer, lines

    def moved(self, name: str, **labels: str) -> float:
        return self.after.value(name, **labels) - self.before.value(name, **labels)

    def line(self, message: str) -> dict[str, Any]:
        (found,) = [line for line in self.lines if line["message"] == message]
        return found


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the process logs, as JSON lines."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    set_up_logging(TelemetrySection(log_format="json", log_level="info"), stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


async def observe(folder: Path, topology: Topology, collector: SpanCollector, log: io.StringIO) -> Observed:
    telemetry = {"otlp_endpoint": collector.endpoint, "scrape_cache_s": 0}
    overrides = {"telemetry": telemetry, "router": {"port": 0, "http_port": 0}}
    async with InProcessSystem(folder, topology, **overrides) as system:
        channels = ChannelPool(system.config.limits.max_message_bytes)
        scaler = _Scaler()
        ports = ClientPorts(system.config, "tiny", system.dispatcher, system.membership, channels, scaler)
        endpoint = await ports.start()
        client = AsyncClient(endpoint, timeout_s=30)
        try:
            pictures = [Image.new("RGB", (84, 56), color) for color in ("red", "green")]
            await client.ask("warm-up", images=pictures[:1], **LONG)
            before = Scrape(await _page(ports))
            collected, log_end = len(log.getvalue()), None
            answer = await client.ask("which?", images=[Image.new("RGB", (140, 84), "blue"), pictures[1]], **LONG)
            after = Scrape(await _page(ports))
            lines = [json.loads(line) for line in log.getvalue()[collected:log_end].splitlines()]
        finally:
            await client.close()
            await ports.stop(0)
            await channels.close()
    return Observed(before, after, answer, lines)


async def _page(ports: ClientPorts) -> str:
    return (await ports.metrics_page()).decode()


class _Scaler:
    def topology(self) -> list[Any]:
        return []


def of_request(collector: SpanCollector, answer: Answer) -> list[KeptSpan]:
    (root,) = [
        span for span in collector.named("request") if span.attributes["triptych.request_id"] == answer.request_id
    ]
    return [span for span in collector.spans if span.trace_id == root.trace_id]


@pytest.mark.parametrize("topology", [ONE_OF_EACH, TWO_ENCODERS, COLOCATED], ids=str)
async def test_scrape_trace_log_and_timings_agree(
    random_model_folder: Path, topology: Topology, log: io.StringIO
) -> None:
    with span_collector() as collector:
        seen = await observe(random_model_folder, topology, collector, log)
        collector.spans = of_request(collector, seen.answer)
    check_trace(collector, seen.answer, topology)
    check_scrape(seen, topology)
    check_log(seen, topology)


def check_trace(collector: SpanCollector, answer: Answer, topology: Topology) -> None:
    timings = answer.timings
    root = collector.one("request")
    assert root.parent_id == ""
    assert root.duration_s >= timings.total_s - CLOCK_S
    assert root.attributes["triptych.total_s"] == timings.total_s
    decode_call = collector.one("LanguageService/Decode")
    calls = collector.children(root)
    prefill_call = decode_call if topology.colocated else collector.one("LanguageService/Prefill")
    assert calls[:2] == ["prepare", "admission"]
    assert set(calls[2:]) == (
        {"LanguageService/Decode"}
        if topology.colocated
        else {"EncoderService/Encode", "LanguageService/Prefill", "LanguageService/Decode"}
    )
    assert calls.count("EncoderService/Encode") == len(set(answer.route.encoder_actors))
    parents = {span.span_id: span for span in collector.spans}
    for name, parent in (
        ("encode", "LanguageService/Decode" if topology.colocated else "EncoderService/Encode"),
        ("embedding_transfer", "LanguageService/Prefill"),
        ("prefill_queue", prefill_call.name),
        ("prefill", prefill_call.name),
        ("kv_transfer", "LanguageService/Decode"),
        ("decode", "LanguageService/Decode"),
    ):
        assert all(parents[span.parent_id].name == parent for span in collector.named(name)), name
    for name, told_s in (
        ("prepare", timings.prepare_s),
        ("admission", timings.admission_s),
        ("encode", timings.encode_s),
        ("embedding_transfer", timings.embedding_transfer_s),
        ("prefill_queue", timings.prefill_queue_s),
        ("prefill", timings.prefill_s),
        ("kv_transfer", timings.kv_transfer_s),
        ("decode", timings.decode_s),
    ):
        durations = [span.duration_s for span in collector.named(name)]
        assert max(durations, default=0.0) == pytest.approx(told_s, abs=CLOCK_S), name
    for span in collector.spans:
        if span.parent_id:
            parent = parents[span.parent_id]
            assert span.begun_s >= parent.begun_s - CLOCK_S, span.name
            assert span.begun_s + span.duration_s <= parent.begun_s + parent.duration_s + CLOCK_S, span.name
    services = {"triptych-prefill_decode"} if topology.colocated else {f"triptych-{s}" for s in STAGES}
    assert {span.service for span in collector.spans} == services | {"triptych-router"}
    assert len(collector.named("encode")) == (1 if topology.colocated else 2)
    assert len(collector.named("embedding_transfer")) == (0 if topology.colocated else 2)
    assert len(collector.named("kv_transfer")) == (0 if topology.colocated else 1)


STAGES = ("encoder", "prefill", "decode")


def check_scrape(seen: Observed, topology: Topology) -> None:
    answer, moved = seen.answer, seen.moved
    usage, timings = answer.usage, answer.timings
    assert moved("requests_total", api="grpc", outcome="ok") == 1
    assert moved("prompt_tokens_total") == usage.prompt_tokens
    assert moved("media_tokens_total") == usage.media_tokens
    assert moved("generation_tokens_total") == usage.completion_tokens
    assert moved("encoder_accepted_items_total") == 2
    assert moved("encoder_encoded_items_total") == 2
    assert moved("encoder_encoded_patches_total") == 4 * usage.media_tokens
    assert moved("encoder_cache_hits_total") == 0
    for name, told_s in (
        ("prepare", timings.prepare_s),
        ("admission", timings.admission_s),
        ("encode", timings.encode_s),
        ("encode_queue", timings.encode_queue_s),
        ("queue", timings.prefill_queue_s),
        ("prefill", timings.prefill_s),
        ("decode", timings.decode_s),
        ("embedding_transfer", timings.embedding_transfer_s),
        ("kv_transfer", timings.kv_transfer_s),
    ):
        is_had = not (topology.colocated and "transfer" in name)
        assert moved(f"request_{name}_time_seconds_count") == is_had
        assert moved(f"request_{name}_time_seconds_sum") == pytest.approx(told_s, abs=1e-6), name
    transfers = 0 if topology.colocated else 3
    assert moved("lane_transfers_total") == transfers
    assert (moved("lane_seconds_total") > 0) == bool(transfers)
    assert moved("accepted_embeddings_total") == 2
    last = (topology.count("prefill_decode") and "prefill_decode") or "decode"  # type: ignore[arg-type]
    first = "prefill_decode" if topology.colocated else "prefill"
    assert moved("prefix_cache_queries_total", stage=first) == usage.prompt_tokens
    assert moved("prefix_cache_hits_total", stage=first) == usage.cached_prompt_tokens
    by_prefill = 0 if topology.colocated else 1
    assert moved("stage_generation_tokens_total", stage=last) == usage.completion_tokens - by_prefill
    assert seen.after.value("num_requests_running") == seen.after.value("num_requests_waiting") == 0
    assert seen.after.value("leases_held") == seen.after.value("stage_requests_running") == 0


def check_log(seen: Observed, topology: Topology) -> None:
    answer, timings = seen.answer, seen.answer.timings
    answered, decoded = seen.line("answered"), seen.line("decoded")
    assert {line["request_id"] for line in seen.lines} == {answer.request_id}
    assert answered["prompt_tokens"] == answer.usage.prompt_tokens
    assert answered["completion_tokens"] == answer.usage.completion_tokens
    for name in ("total_s", "time_to_first_token_s", "encode_s", "prefill_s", "kv_transfer_s", "decode_s"):
        assert answered[name] == getattr(timings, name)
    assert decoded["decode_s"] == timings.decode_s and decoded["kv_transfer_s"] == timings.kv_transfer_s
    if topology.colocated:
        return
    prefilled = seen.line("prefilled")
    assert prefilled["prefill_s"] == timings.prefill_s and prefilled["queue_s"] == timings.prefill_queue_s
    encoded = [line for line in seen.lines if line["message"] == "encoded"]
    assert sum(line["num_items"] for line in encoded) == 2
    assert max(line["encode_s"] for line in encoded) == timings.encode_s
