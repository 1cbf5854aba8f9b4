"""ScalingMetrics: actors wanted and running of each stage, and why the wanted ones changed."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from router.control.membership import StageName
from router.control.scaling.context import ActorCounts, Reason


class ScalingMetrics:
    """Labels: the four stages, up or down, and the reasons of `Reason`."""

    def __init__(self, model_name: str, registry: CollectorRegistry) -> None:
        self._model_name = model_name
        labels = ["model_name", "stage"]
        self._wanted = Gauge(
            "triptych:replicas_wanted", "Actors that the stage should have.", labels, registry=registry
        )
        self._running = Gauge("triptych:replicas_running", "Actors that take requests.", labels, registry=registry)
        self._decisions = Counter(
            "triptych:scaling_decisions",
            "Changes of the wanted number by the scaling policy.",
            [*labels, "direction", "reason"],
            registry=registry,
        )

    def note_counts(self, stage: StageName, counts: ActorCounts) -> None:
        self._wanted.labels(self._model_name, stage).set(counts.wanted)
        self._running.labels(self._model_name, stage).set(counts.ready)

    def note_decision(self, stage: StageName, before: int, after: int, reason: Reason) -> None:
        direction = "up" if after > before else "down"
        self._decisions.labels(self._model_name, stage, direction, reason).inc()
