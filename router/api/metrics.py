"""RouterMetrics: what the router counts about requests, for Prometheus. Names follow vLLM's, prefix triptych:."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from router.api.counted_histogram import CountedHistogram
from router.api.dispatch_metrics import DispatchMetrics
from router.api.phase_metrics import PhaseMetrics
from router.dispatch.dispatch_counts import DispatchCounts
from triptych.v1 import admin_pb2, common_pb2, inference_pb2

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOME_OK = "ok"

_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_E2E_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0)


class RouterMetrics:
    """A registry of its own for each router. Times are of the router: from a request's arrival to what it sends."""

    def __init__(
        self,
        model_name: str,
        num_running: Callable[[], int],
        counts: Callable[[], DispatchCounts] = DispatchCounts,
    ) -> None:
        self._registry = registry = CollectorRegistry()
        model = {"model_name": model_name}

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> CountedHistogram:
            metric = CountedHistogram(f"triptych:{name}", text, model_name, buckets)
            registry.register(metric)
            return metric

        def counter(name: str, text: str) -> Counter:
            return Counter(f"triptych:{name}", text, ["model_name"], registry=registry).labels(**model)

        self._outcomes = Counter(
            "triptych:requests",
            "Requests that ended, by API and outcome: ok, or the class of the error.",
            ["model_name", "api", "outcome"],
            registry=registry,
        )
        self._finished = Counter(
            "triptych:request_success",
            "Answers that were completed, by what ended them.",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        self._encode_places = Counter(
            "triptych:encode_place",
            "Answered requests with media by where they were encoded, and why there.",
            ["model_name", "place", "reason"],
            registry=registry,
        )
        self._model_name = model_name
        self._num_running = num_running
        self._counts = counts
        self.ttft = histogram("time_to_first_token_seconds", "Arrival to first token.", _TTFT_BUCKETS)
        self.tpot = histogram(
            "request_time_per_output_token_seconds", "Mean time of a request's tokens after the first.", _TOKEN_BUCKETS
        )
        self.itl = histogram("inter_token_latency_seconds", "Time between two tokens of an answer.", _TOKEN_BUCKETS)
        self.e2e = histogram("e2e_request_latency_seconds", "Arrival to the end of the answer.", _E2E_BUCKETS)
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered requests.")
        self._media_tokens = counter("media_tokens", "Part of the prompt tokens that stand for pictures and videos.")
        self._cached_tokens = counter("cached_prompt_tokens", "Part of the prompt tokens found in a prefix cache.")
        self._generation_tokens = counter("generation_tokens", "Tokens sent to clients.")
        self._retries = counter("walk_retries", "Walks that were begun again because an actor or link failed.")
        self._phases = PhaseMetrics(registry, model_name)
        registry.register(DispatchMetrics(model_name, counts))
        running = Gauge(
            "triptych:num_requests_running", "Requests inside the router.", ["model_name"], registry=registry
        )
        running.labels(**model).set_function(num_running)

    @property
    def registry(self) -> CollectorRegistry:
        """Where other parts of the router add their metrics."""
        return self._registry

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def counters(self) -> admin_pb2.RouterCounters:
        """The few that `triptych top` shows."""
        counts = self._counts()
        outcomes = [sample for family in self._outcomes.collect() for sample in family.samples]
        ended = {
            is_ok: sum(
                sample.value
                for sample in outcomes
                if sample.name.endswith("_total") and (sample.labels["outcome"] == OUTCOME_OK) == is_ok
            )
            for is_ok in (True, False)
        }
        return admin_pb2.RouterCounters(
            running_requests=self._num_running(),
            waiting_requests=counts.num_waiting,
            answered_requests=int(ended[True]),
            failed_requests=int(ended[False]),
            generated_tokens=int(_value(self._generation_tokens)),
            time_to_first_token=_histogram(self.ttft),
            time_per_output_token=_histogram(self.tpot),
        )

    def request(self, api: str) -> RequestMetrics:
        """Begins the clock of a request that came over `api`."""
        return RequestMetrics(self, api, time.monotonic())

    def note_outcome(self, api: str, outcome: str) -> None:
        """A request ended."""
        self._outcomes.labels(model_name=self._model_name, api=api, outcome=outcome).inc()

    def note_summary(self, summary: inference_pb2.GenerateSummary) -> None:
        """An answer was completed."""
        self._phases.note(summary)
        usage = summary.usage
        self._prompt_tokens.inc(usage.prompt_tokens)
        if usage.media_tokens:
            self._media_tokens.inc(usage.media_tokens)
        self._cached_tokens.inc(usage.cached_prompt_tokens)
        route = summary.route
        if route.attempts > 1:
            self._retries.inc(route.attempts - 1)
        if usage.media_tokens:
            place = "encoder" if route.encoder_actors else "language_actor"
            self._encode_places.labels(
                model_name=self._model_name, place=place, reason=route.encode_reason or "unknown"
            ).inc()
        for reason in [choice.finish_reason for choice in summary.choices] or [summary.finish_reason]:
            name = common_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
            self._finished.labels(model_name=self._model_name, finished_reason=name).inc()

    def note_tokens(self, num_tokens: int) -> None:
        """Tokens were sent to a client."""
        self._generation_tokens.inc(num_tokens)


class RequestMetrics:
    """The clock of one request; `end` exactly once."""

    def __init__(self, metrics: RouterMetrics, api: str, begun_at: float) -> None:
        self.api = api
        self.begun_at = begun_at  # on the clock of time.monotonic
        self._metrics = metrics
        self._first_at = 0.0
        self._last_at: dict[int, float] = {}
        self._num_tokens = 0

    def note(self, response: inference_pb2.GenerateResponse) -> None:
        """A message on its way to the client."""
        if response.WhichOneof("message") == "summary":
            self._metrics.note_summary(response.summary)
            return
        chunk = response.chunk
        num_tokens = len(chunk.token_ids)
        if not num_tokens:
            return
        now = time.monotonic()
        if not self._first_at:
            self._first_at = now
            self._metrics.ttft.observe(now - self.begun_at)
        last_at = self._last_at.get(chunk.choice_index)
        if last_at is not None:
            # Those that came together share the time since the last.
            self._metrics.itl.observe((now - last_at) / num_tokens, num_tokens)
        self._last_at[chunk.choice_index] = now
        self._num_tokens += num_tokens
        self._metrics.note_tokens(num_tokens)

    def end(self, outcome: str) -> None:
        """`outcome` is "ok" or an error's class."""
        self._metrics.note_outcome(self.api, outcome)
        if outcome != OUTCOME_OK:
            return
        now = time.monotonic()
        self._metrics.e2e.observe(now - self.begun_at)
        num_choices = max(1, len(self._last_at))
        num_later = self._num_tokens - num_choices
        if num_later > 0:
            spent_s = max(self._last_at.values()) - self._first_at
            self._metrics.tpot.observe(spent_s * num_choices / num_later)


def _value(counter: Counter) -> float:
    return next(sample.value for family in counter.collect() for sample in family.samples if "_total" in sample.name)


def _histogram(histogram: CountedHistogram) -> admin_pb2.Histogram:
    told = admin_pb2.Histogram()
    below = 0
    for sample in (sample for family in histogram.collect() for sample in family.samples):
        if sample.name.endswith("_bucket"):
            told.upper_bounds_s.append(float(sample.labels["le"]))
            told.counts.append(int(sample.value) - below)
            below = int(sample.value)
    return told
