"""ActorMetrics: what the actors say about themselves, as Prometheus metrics with the labels stage and actor_id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from triptych.v1 import admin_pb2, common_pb2

PREFIX = "triptych:"
STAGE_LABELS = ("model_name", "stage")
ACTOR_LABELS = (*STAGE_LABELS, "actor_id")

# Values of further labels, and the value of the metric.
Samples = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True)
class ActorMetric:
    """One metric of an actor. `part` is the field of ActorInfo without which an actor has none of it."""

    name: str
    text: str
    samples: Callable[[admin_pb2.ActorInfo], Samples]
    part: str = ""
    labels: tuple[str, ...] = ()
    is_counter: bool = False

    def family(self) -> CounterMetricFamily | GaugeMetricFamily:
        make = CounterMetricFamily if self.is_counter else GaugeMetricFamily
        return make(PREFIX + self.name, self.text, labels=(*ACTOR_LABELS, *self.labels))


class ActorMetrics(Collector):
    """Shows what was given to `update` last; actors that are gone leave with it, so that labels stay bounded."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._infos: tuple[admin_pb2.ActorInfo, ...] = ()
        self._stages: tuple[admin_pb2.StageStatus, ...] = ()
        self._metrics = actor_metrics()

    def update(self, infos: Sequence[admin_pb2.ActorInfo], stages: Sequence[admin_pb2.StageStatus]) -> None:
        """`infos` of the actors that answered; `stages` as the controller lists them, wanted or not."""
        self._infos, self._stages = tuple(infos), tuple(stages)

    def collect(self) -> Iterator[Metric]:
        yield from self._stage_families()
        for metric in self._metrics:
            family = metric.family()
            for info in self._infos:
                if metric.part and not info.HasField(metric.part):
                    continue
                owner = (self._model_name, stage_label(info.stage), info.actor_id)
                for labels, value in metric.samples(info):
                    family.add_metric((*owner, *labels), value)
            yield family

    def describe(self) -> Iterator[Metric]:
        """Names alone, for the registry."""
        yield from self._stage_families()
        for metric in self._metrics:
            yield metric.family()

    def _stage_families(self) -> Iterator[Metric]:
        wanted = GaugeMetricFamily(f"{PREFIX}actors_wanted", "Actors that the stage should have.", labels=STAGE_LABELS)
        running = GaugeMetricFamily(
            f"{PREFIX}actors", "Actors that the stage has, by state.", labels=(*STAGE_LABELS, "state")
        )
        for stage in self._stages:
            owner = (self._model_name, stage_label(stage.stage))
            wanted.add_metric(owner, stage.wanted_actors)
            states: list[int] = [actor.state for actor in stage.actors]
            for state in admin_pb2.ActorState.values()[1:]:
                running.add_metric((*owner, state_label(state)), states.count(state))
        yield wanted
        yield running


def stage_label(stage: int) -> str:
    """`STAGE_PREFILL_DECODE` as in the configuration: prefill_decode."""
    return common_pb2.Stage.Name(stage).removeprefix("STAGE_").lower()


def state_label(state: int) -> str:
    """`ACTOR_STATE_READY` as people write it: ready."""
    return admin_pb2.ActorState.Name(state).removeprefix("ACTOR_STATE_").lower()


def actor_metrics() -> tuple[ActorMetric, ...]:
    """All metrics of actors, whatever their stage."""
    return (*_encoder_metrics(), *_language_metrics(), *_lease_and_lane_metrics())


def _encoder_metrics() -> Iterator[ActorMetric]:
    def gauge(name: str, text: str, field: str) -> ActorMetric:
        return ActorMetric(f"encoder_{name}", text, _value("encoder", field), "encoder")

    def counter(name: str, text: str, field: str) -> ActorMetric:
        return ActorMetric(f"encoder_{name}", text, _value("encoder", field), "encoder", is_counter=True)

    yield counter("accepted_items", "Pictures and videos taken in, cached ones included.", "accepted_items")
    yield counter("rejected_items", "Pictures and videos refused.", "rejected_items")
    yield counter("expired_items", "Pictures and videos whose time ran out in the queue.", "expired_items")
    yield counter("encoded_items", "Pictures and videos that went through the tower.", "encoded_items")
    yield counter("encoded_patches", "Patches that went through the tower.", "encoded_patches")
    yield counter("batches", "Forward passes of the tower; patches a batch is the quotient.", "num_batches")
    yield gauge("pending_patches", "Patches that wait or are being encoded.", "pending_patches")
    yield gauge("max_pending_patches", "Most patches that may be pending.", "max_pending_patches")
    yield gauge("activation_bytes", "Memory reserved by the batches in work.", "activation_bytes")
    yield gauge("max_activation_bytes", "Most memory that batches may reserve.", "max_activation_bytes")
    tier = ("tier",)
    yield ActorMetric(
        "encoder_cache_hits",
        "Items found in the embedding cache, by where it held them.",
        lambda info: (
            (("device",), info.encoder.device_cache_hits),
            (("host",), info.encoder.host_cache_hits),
        ),
        "encoder",
        tier,
        is_counter=True,
    )
    yield counter("reused_items", "Items from the cache or from work in flight for another request.", "cache_hits")
    yield ActorMetric(
        "encoder_cache_items",
        "Embeddings in the cache.",
        lambda info: ((("device",), info.encoder.cache_items), (("host",), info.encoder.host_cache_items)),
        "encoder",
        tier,
    )
    yield ActorMetric(
        "encoder_cache_bytes",
        "Bytes of the embeddings in the cache.",
        lambda info: ((("device",), info.encoder.cache_bytes), (("host",), info.encoder.host_cache_bytes)),
        "encoder",
        tier,
    )


def _language_metrics() -> Iterator[ActorMetric]:
    def gauge(name: str, text: str, field: str) -> ActorMetric:
        return ActorMetric(name, text, _value("language", field), "language")

    def counter(name: str, text: str, field: str) -> ActorMetric:
        return ActorMetric(name, text, _value("language", field), "language", is_counter=True)

    yield gauge("stage_requests_running", "Sequences that take part in the engine's steps.", "running_requests")
    yield gauge("stage_requests_waiting", "Requests on the actor that wait for tensors or a step.", "waiting_requests")
    yield counter("stage_requests_finished", "Sequences that ended.", "finished_requests")
    yield counter("engine_steps", "Steps of the engine.", "num_steps")
    yield counter("num_preemptions", "Sequences that had to give their KV pages back for a while.", "num_preemptions")
    yield counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", "prompt_tokens")
    yield counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", "cached_prompt_tokens")
    yield counter("stage_generation_tokens", "Tokens that the actor generated.", "generated_tokens")
    yield counter("accepted_embeddings", "Embeddings of pictures and videos taken into prompts.", "accepted_embeddings")
    yield gauge("kv_pages_capacity", "KV pages that the actor has.", "total_pages")
    yield ActorMetric(
        "kv_pages",
        "KV pages in use: held by sequences and leases, or free but filled for reuse.",
        lambda info: ((("held",), info.language.held_pages), (("cached",), info.language.cached_pages)),
        "language",
        ("state",),
    )
    yield ActorMetric(
        "kv_cache_usage_perc",
        "Part of the KV pages that is held; 1 is all. Pages copied for a lease count again.",
        lambda info: (((), info.language.held_pages / max(1, info.language.total_pages)),),
        "language",
    )


def _lease_and_lane_metrics() -> Iterator[ActorMetric]:
    yield ActorMetric("leases_held", "Tensors kept for who is to fetch them.", _value("leases", "held_leases"))
    yield ActorMetric("lease_held_bytes", "Bytes of the tensors under leases.", _value("leases", "held_bytes"))
    yield ActorMetric("tickets_pending", "Tickets whose tensor is not there yet.", _value("leases", "pending_tickets"))
    yield ActorMetric("leases_granted", "Leases granted.", _value("leases", "granted_leases"), is_counter=True)
    yield ActorMetric(
        "leases_expired", "Leases that ran out unfetched.", _value("leases", "expired_leases"), is_counter=True
    )
    for name, text, field in (
        ("lane_transfers", "Tensors fetched, by lane.", "num_transfers"),
        ("lane_bytes", "Bytes fetched, by lane.", "num_bytes"),
        ("lane_seconds", "Time of the transfers, from when their tensor was on offer.", "seconds"),
        ("lane_failures", "Transfers that had to take the next lane or failed.", "num_failures"),
    ):
        yield ActorMetric(name, text, _of_lanes(field), labels=("lane",), is_counter=True)


def _value(part: str, field: str) -> Callable[[admin_pb2.ActorInfo], Samples]:
    return lambda info: (((), getattr(getattr(info, part), field)),)


def _of_lanes(field: str) -> Callable[[admin_pb2.ActorInfo], Samples]:
    return lambda info: (((lane.lane,), getattr(lane, field)) for lane in info.lane_counters)
