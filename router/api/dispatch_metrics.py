"""DispatchMetrics: the dispatcher's own counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from router.dispatch.dispatch_counts import DispatchCounts


class DispatchMetrics(Collector):
    """Asks `counts` at each scrape."""

    def __init__(self, model_name: str, counts: Callable[[], DispatchCounts]) -> None:
        self._model_name = model_name
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        gauges = (
            ("num_requests_waiting", "Requests that wait for room in the stages.", counts.num_waiting),
            ("circuits_open", "Actors that get no new work, because they failed.", counts.num_open_circuits),
        )
        counters = (
            ("circuit_openings", "How often an actor was left alone after failures.", counts.num_circuit_openings),
            ("hedges", "Requests that were begun a second time on other encoders.", counts.num_hedges),
        )
        for kind, metrics in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, text, value in metrics:
                family = kind(f"triptych:{name}", text, labels=["model_name"])
                family.add_metric([self._model_name], value)
                yield family
