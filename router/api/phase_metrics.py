"""PhaseMetrics: where the answered requests spent their time, stage by stage, from the timings of their summaries."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from router.api.counted_histogram import CountedHistogram
from triptych.v1 import inference_pb2

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)


class PhaseMetrics:
    """A request counts in the phases that it had: one without pictures has no encode, one actor no KV transfer."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> CountedHistogram:
            metric = CountedHistogram(f"triptych:{name}", text, model_name, buckets)
            registry.register(metric)
            return metric

        self._prepare = histogram("request_prepare_time_seconds", "Router: tokenize and read headers.")
        self._admission = histogram("request_admission_time_seconds", "Router: wait for room in the stages.")
        self._encode_queue = histogram("request_encode_queue_time_seconds", "Wait of the slowest item for the tower.")
        self._encode = histogram("request_encode_time_seconds", "Decoding and encoding of the slowest item.")
        self._embedding_transfer = histogram(
            "request_embedding_transfer_time_seconds", "Slowest embedding's way from its encoder to prefill."
        )
        self._queue = histogram("request_queue_time_seconds", "Wait for the first step of prefill.")
        self._prefill = histogram("request_prefill_time_seconds", "First step of prefill to first token.")
        self._kv_transfer = histogram("request_kv_transfer_time_seconds", "KV pages' way from prefill to decode.")
        self._decode = histogram("request_decode_time_seconds", "Decode, to the last token.")
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generation = histogram("request_generation_tokens", "Tokens of a request's answers.", _TOKENS)

    def note(self, summary: inference_pb2.GenerateSummary) -> None:
        """An answer was completed."""
        timings, route, usage = summary.timings, summary.route, summary.usage
        self._prepare.observe(timings.prepare_s)
        self._admission.observe(timings.admission_s)
        if usage.media_tokens:
            self._encode_queue.observe(timings.encode_queue_s)
            self._encode.observe(timings.encode_s)
        if route.embedding_lanes:
            self._embedding_transfer.observe(timings.embedding_transfer_s)
        self._queue.observe(timings.prefill_queue_s)
        self._prefill.observe(timings.prefill_s)
        if route.kv_lane:
            self._kv_transfer.observe(timings.kv_transfer_s)
        self._decode.observe(timings.decode_s)
        self._prompt.observe(usage.prompt_tokens)
        self._generation.observe(usage.completion_tokens)
